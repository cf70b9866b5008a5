//! The KVM machine: one vCPU, in-kernel interrupt controllers and timer, a serial console, and our
//! own payload.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};
use parking_lot::Mutex;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{GuestConfig, TrackingMethod};

use crate::console::Console;
use crate::engine::{Engine, STOP_WAIT};
use crate::layout::WorkingSet;
use crate::memory::Memory;
use crate::pacer::Pacer;
use crate::pattern::Pattern;
use crate::runner::{Outcome, Progress, Runner};
use crate::sections::{Kind, Sections};
use crate::workload::{Counters, fill_memory};
use dirty::DirtyLog;
use vcpu::{Devices, Vcpu};

mod boot;
mod cpuid;
mod dirty;
pub mod payload;
mod serial;
mod state;
mod vcpu;

/// Three pages required by processors without unrestricted guest mode, in the hole below 4 GiB.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One more page for the same purpose.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// The controlling side of a KVM guest.
#[derive(Debug)]
pub(crate) struct KvmGuest {
    kvm: Kvm,
    vm: VmFd,
    memory: Memory,
    dirty_log: DirtyLog,
    runner: Arc<Runner>,
    vcpu: Arc<Mutex<Vcpu>>,
    thread: JoinHandle<()>,
    config: GuestConfig,
}

/// Converts the error of a KVM call to a fault.
fn kvm_fault(what: &str, error: impl std::fmt::Display) -> Fault {
    Fault::new(Code::Kvm, format!("{what}: {error}"))
}

fn open() -> Result<Kvm, Fault> {
    let kvm = Kvm::new().map_err(|error| kvm_fault("/dev/kvm", error))?;
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(kvm_fault("/dev/kvm", format!("version {version}")));
    }
    let needed = [
        (Cap::Irqchip, "interrupt controllers"),
        (Cap::Pit2, "timer"),
        (Cap::UserMemory, "user memory"),
        (Cap::ImmediateExit, "immediate exit"),
        (Cap::Xcrs, "xcrs"),
        (Cap::VcpuEvents, "vcpu events"),
        (Cap::Debugregs, "debug registers"),
        (Cap::AdjustClock, "clock"),
        (Cap::GetTscKhz, "tsc rate"),
    ];
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        Ok(kvm)
    } else {
        Err(kvm_fault("/dev/kvm lacks", missing.join(", ")))
    }
}

/// Whether this process can make KVM guests, or why not.
pub(crate) fn probe() -> Result<(), Fault> {
    let vm = open()?
        .create_vm()
        .map_err(|error| kvm_fault("create a machine", error))?;
    vm.create_irq_chip()
        .map_err(|error| kvm_fault("interrupt controllers", error))?;
    vm.create_vcpu(0)
        .map(drop)
        .map_err(|error| kvm_fault("create a vcpu", error))
}

impl KvmGuest {
    /// Creates the machine, stopped.
    pub(crate) fn create(
        config: &GuestConfig,
        memory: Memory,
        console: Console,
    ) -> Result<Self, Fault> {
        let kvm = open()?;
        let vm = kvm
            .create_vm()
            .map_err(|error| kvm_fault("create a machine", error))?;
        create_chips(&vm)?;
        let dirty_log = DirtyLog::create(&vm, memory.clone())?;
        let fd = vm
            .create_vcpu(0)
            .map_err(|error| kvm_fault("create a vcpu", error))?;
        let workload = &config.workload;
        let pacer = Pacer::new(
            workload.dirty_pages_per_second,
            workload.heartbeat_interval_us,
        );
        let devices = Devices::new(memory.clone(), console, WorkingSet::of(config), pacer);
        let vcpu = Arc::new(Mutex::new(Vcpu {
            fd,
            cpuid: None,
            devices,
        }));
        let runner = Arc::new(Runner::new());
        vcpu::install_kick().map_err(|error| kvm_fault("kick signal", error))?;
        let (thread_runner, thread_vcpu) = (Arc::clone(&runner), Arc::clone(&vcpu));
        let thread = std::thread::Builder::new()
            .name("vcpu-0".to_owned())
            .spawn(move || thread_runner.guard(|runner| vcpu::run(runner, &thread_vcpu)))
            .map_err(|error| kvm_fault("the vcpu's thread", error))?;
        Ok(Self {
            kvm,
            vm,
            memory,
            dirty_log,
            runner,
            vcpu,
            thread,
            config: config.clone(),
        })
    }

    fn kick(&self) {
        let thread = self.thread.as_pthread_t();
        // SAFETY: the thread is not joined as long as its handle is ours, so its id is its own; the
        // signal's handler is installed.
        let result = unsafe { libc::pthread_kill(thread, vcpu::kick_signal()) };
        if result != 0 {
            tracing::warn!(result, "the vcpu cannot be kicked");
        }
    }
}

fn create_chips(vm: &VmFd) -> Result<(), Fault> {
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
        .map_err(|error| kvm_fault("identity map", error))?;
    vm.set_tss_address(TSS_ADDRESS)
        .map_err(|error| kvm_fault("task state", error))?;
    vm.create_irq_chip()
        .map_err(|error| kvm_fault("interrupt controllers", error))?;
    vm.create_pit2(kvm_pit_config::default())
        .map_err(|error| kvm_fault("timer", error))
}

impl Engine for KvmGuest {
    fn boot(&mut self) -> Result<(), Fault> {
        let workload = &self.config.workload;
        let (key, percent) = (workload.key, workload.incompressible_percent);
        let pattern = Pattern::new(key, percent);
        let mut vcpu = self.vcpu.lock();
        let set = vcpu.devices.set;
        boot::load_memory(&self.memory, &set, key, percent, &pattern);
        fill_memory(&self.memory, &set, &pattern);
        let mut cpuid = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| kvm_fault("supported cpuid", error))?;
        cpuid::personalise(cpuid.as_mut_slice());
        let failed = |error| kvm_fault("first state", error);
        vcpu.fd.set_cpuid2(&cpuid).map_err(failed)?;
        vcpu.cpuid = Some(cpuid);
        let mut registers = vcpu.fd.get_sregs().map_err(failed)?;
        boot::enter_long_mode(&mut registers);
        vcpu.fd.set_sregs(&registers).map_err(failed)?;
        vcpu.fd
            .set_regs(&boot::first_registers(&set))
            .map_err(failed)?;
        vcpu.devices.counters = Counters::default();
        self.runner.set_progress(vcpu.progress());
        Ok(())
    }

    fn start(&mut self, epoch: u64) -> Result<u64, Fault> {
        self.runner.set_epoch(epoch);
        self.runner.start(STOP_WAIT)
    }

    fn stop(&mut self) -> Result<u64, Fault> {
        self.runner.stop(|| self.kick(), STOP_WAIT)
    }

    fn save(&mut self) -> Result<Sections, Fault> {
        let vcpu = self.vcpu.lock();
        let mut sections = Sections::default();
        let cpuid = vcpu
            .cpuid
            .as_ref()
            .ok_or_else(|| Fault::new(Code::State, "the vcpu never ran"))?;
        state::save_vcpu(&self.kvm, &vcpu.fd, cpuid, &mut sections)?;
        state::save_machine(&self.vm, &mut sections)?;
        state::put(&mut sections, Kind::Serial, &vcpu.devices.serial);
        let counters = Counters {
            credit_micropages: vcpu.devices.pacer.credit_micropages(),
            ..vcpu.devices.counters
        };
        counters.put(&vcpu.devices.console, &mut sections);
        Ok(sections)
    }

    fn load(&mut self, mut sections: Sections) -> Result<(), Fault> {
        let mut guard = self.vcpu.lock();
        let Vcpu { fd, cpuid, devices } = &mut *guard;
        state::load_machine(&self.vm, &mut sections)?;
        *cpuid = Some(state::load_vcpu(&self.kvm, fd, &mut sections)?);
        devices.serial = state::take(&mut sections, Kind::Serial)?;
        devices.counters = Counters::take(&devices.set, &mut devices.console, &mut sections)?;
        devices
            .pacer
            .restore_credit(devices.counters.credit_micropages);
        sections.finish()?;
        self.runner.set_progress(guard.progress());
        Ok(())
    }

    fn progress(&self) -> Progress {
        self.runner.progress()
    }

    fn outcome(&self) -> Option<Outcome> {
        self.runner.outcome()
    }

    fn tracking_method(&self) -> TrackingMethod {
        self.dirty_log.method()
    }

    fn start_tracking(&mut self) -> Result<(), Fault> {
        self.dirty_log.start(&self.vm)
    }

    fn harvest(&mut self, first_block: u64, block_count: u32) -> Result<Vec<u64>, Fault> {
        self.dirty_log.harvest(&self.vm, first_block, block_count)
    }

    fn stop_tracking(&mut self) -> Result<(), Fault> {
        self.dirty_log.stop(&self.vm)
    }

    fn end(&mut self) {
        self.runner.end(|| self.kick());
    }
}

#[cfg(test)]
mod tests;
