//! The vCPU's thread and the devices it accesses.

use std::cell::Cell;
use std::time::Instant;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuExit, VcpuFd};
use parking_lot::Mutex;
use towpath_protocol::guest_api::PageInProgress;

use super::payload::{DEVICES_PHYSICAL, EPOCH, REPORT, SERIAL, TICK, TICK_AGAIN, report_text};
use super::serial::Serial;
use crate::clock::monotonic_ns;
use crate::console::Console;
use crate::layout::{MAILBOX, MAILBOX_WORDS, WorkingSet};
use crate::memory::Memory;
use crate::pacer::Pacer;
use crate::runner::{Outcome, Progress, Runner, Woken};
use crate::workload::Counters;

/// Device accesses that may still occur when KVM is only asked to finish the last one: an access
/// across pages has two, a string instruction has one per step.
const PENDING_COUNT_MAX: u32 = 4096;

/// Registers of the serial console.
const SERIAL_REGISTERS: std::ops::Range<u64> = SERIAL..SERIAL + 8;

/// Times in a row that KVM may ask for a repeat before the guest counts as stuck.
const AGAIN_COUNT_MAX: u32 = 1_000;

/// A vCPU and everything it accesses.
#[derive(Debug)]
pub(super) struct Vcpu {
    pub(super) fd: VcpuFd,
    /// The processor's CPUID; `None` before a first start or a load.
    pub(super) cpuid: Option<CpuId>,
    pub(super) devices: Devices,
}

/// The devices.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) memory: Memory,
    pub(super) console: Console,
    pub(super) serial: Serial,
    pub(super) set: WorkingSet,
    pub(super) pacer: Pacer,
    pub(super) counters: Counters,
    due_ns: u64,
    dealt: Option<(u32, Instant)>,
}

/// The result of one exit of the vCPU.
enum Step {
    Go,
    Interrupted,
    Again,
    Reported(u32),
    Failed(String),
}

impl Devices {
    pub(super) fn new(memory: Memory, console: Console, set: WorkingSet, pacer: Pacer) -> Self {
        Self {
            memory,
            console,
            serial: Serial::default(),
            set,
            pacer,
            counters: Counters::default(),
            due_ns: 0,
            dealt: None,
        }
    }

    /// Called when the vCPU continues after a stop. The next heartbeat is due now, and the stop
    /// does not count as working time.
    fn resume(&mut self) {
        self.due_ns = monotonic_ns();
        self.dealt = None;
    }

    fn read(&mut self, address: u64, bytes: &mut [u8], runner: &Runner) {
        let register = address.wrapping_sub(DEVICES_PHYSICAL);
        let word = match register {
            _ if SERIAL_REGISTERS.contains(&register) => {
                u64::from(self.serial.read(register - SERIAL))
            }
            TICK => u64::from(self.tick(runner)),
            EPOCH => runner.epoch(),
            // Nothing is there: the bus floats.
            _ => u64::MAX,
        };
        bytes.fill(0);
        for (byte, value) in bytes.iter_mut().zip(word.to_le_bytes()) {
            *byte = value;
        }
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Step {
        let register = address.wrapping_sub(DEVICES_PHYSICAL);
        if SERIAL_REGISTERS.contains(&register) {
            self.serial
                .write(register - SERIAL, bytes, &mut self.console);
        } else if register == REPORT {
            let code = bytes
                .first_chunk()
                .map_or(u32::MAX, |&code| u32::from_le_bytes(code));
            return Step::Reported(code);
        }
        Step::Go
    }

    /// Waits for the next tick and returns its number of pages.
    fn tick(&mut self, runner: &Runner) -> u32 {
        if let Some((pages, begun)) = self.dealt.take() {
            self.pacer.learn(pages, begun.elapsed());
            // The payload only asks for the next tick when all pages of the last are written.
            self.counters.write_count += u64::from(pages);
            runner.set_progress(Progress {
                heartbeat_sequence: self.counters.tick_count,
                write_count: self.counters.write_count,
                page_in_progress: None,
            });
        }
        if runner.sleep_until(self.due_ns) == Woken::Interrupted {
            return TICK_AGAIN;
        }
        self.due_ns = (self.due_ns + self.pacer.interval_ns()).max(monotonic_ns());
        self.counters.tick_count += 1;
        let word = self.counters.tick_count % MAILBOX_WORDS;
        self.memory
            .write_words(MAILBOX + word * 8, &[self.counters.tick_count]);
        let pages = if self.set.page_count == 0 {
            0
        } else {
            self.pacer.deal()
        };
        self.dealt = Some((pages, Instant::now()));
        pages
    }
}

impl Vcpu {
    /// Runs until the guest has to stop. On return no device access is half done.
    fn run_until_stopped(&mut self, runner: &Runner) -> Result<(), Outcome> {
        self.devices.resume();
        let mut again_count = 0;
        while !runner.is_stop_wanted() {
            match self.step(runner) {
                Step::Again if again_count < AGAIN_COUNT_MAX => again_count += 1,
                Step::Again => return Err(Outcome::Crashed("KVM makes no progress".to_owned())),
                Step::Go | Step::Interrupted => again_count = 0,
                Step::Reported(code) => return Err(self.outcome(code)),
                Step::Failed(reason) => return Err(Outcome::Crashed(reason)),
            }
        }
        self.finish_device_access(runner)
    }

    /// Lets KVM finish the device access of the last exit without running the guest further. Before
    /// that, the access's result is in neither the registers nor the devices.
    pub(super) fn finish_device_access(&mut self, runner: &Runner) -> Result<(), Outcome> {
        for _ in 0..PENDING_COUNT_MAX {
            self.fd.set_kvm_immediate_exit(1);
            let step = self.step(runner);
            match step {
                Step::Interrupted => return Ok(()),
                Step::Go | Step::Again => {}
                Step::Reported(code) => return Err(self.outcome(code)),
                Step::Failed(reason) => return Err(Outcome::Crashed(reason)),
            }
        }
        Err(Outcome::Crashed(
            "a device access does not finish".to_owned(),
        ))
    }

    fn step(&mut self, runner: &Runner) -> Step {
        let step = match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, bytes)) => {
                self.devices.read(address, bytes, runner);
                Step::Go
            }
            Ok(VcpuExit::MmioWrite(address, bytes)) => self.devices.write(address, bytes),
            // We have no I/O ports: the bus floats.
            Ok(VcpuExit::IoIn(_, bytes)) => {
                bytes.fill(0xff);
                Step::Go
            }
            Ok(VcpuExit::IoOut(..) | VcpuExit::Intr) => Step::Go,
            Ok(VcpuExit::Shutdown) => Step::Failed("the processor shut down".to_owned()),
            Ok(exit) => Step::Failed(format!("KVM came out with {exit:?}")),
            Err(error) => match error.errno() {
                libc::EINTR => Step::Interrupted,
                libc::EAGAIN => Step::Again,
                _ => Step::Failed(format!("KVM_RUN: {error}")),
            },
        };
        // A kick that arrives before this line is not lost, because its stop was requested before
        // it.
        self.fd.set_kvm_immediate_exit(0);
        step
    }

    /// Runs to the next device access. `false` if the guest ended there.
    #[cfg(test)]
    pub(super) fn step_once(&mut self, runner: &Runner) -> bool {
        matches!(self.step(runner), Step::Go)
    }

    fn outcome(&self, code: u32) -> Outcome {
        if code == 0 {
            return Outcome::Stopped;
        }
        let registers = self.fd.get_regs().unwrap_or_default();
        let (page, version) = (registers.r15 / 4096, registers.rbx);
        let (sequence, what) = (registers.r13, report_text(code));
        Outcome::Crashed(format!(
            "report {code}: {what} (page {page}, version {version}, heartbeat {sequence})"
        ))
    }

    /// The payload's progress, from its registers. Also corrects the devices' estimate.
    pub(super) fn progress(&mut self) -> Progress {
        let registers = self.fd.get_regs().unwrap_or_default();
        let write_count = registers.r12 / 2;
        self.devices.counters.write_count = write_count;
        let page_in_progress = (registers.r12 % 2 == 1).then_some(PageInProgress {
            block: registers.r15 / 4096,
            version: registers.rbx,
        });
        Progress {
            heartbeat_sequence: registers.r13,
            write_count,
            page_in_progress,
        }
    }
}

thread_local! {
    /// For the signal handler: the flag of this thread's vCPU that requests an exit.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// The signal that makes a vCPU exit from KVM.
pub(super) fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int) {
    // A signal that arrives just before `KVM_RUN` would have no effect on it, but the flag does.
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the thread set the pointer to a byte of its vCPU's shared page and clears it before
        // that page goes; the handler runs on the same thread.
        unsafe { std::ptr::write_volatile(flag, 1) };
    }
}

/// Makes the kick signal interrupt system calls instead of ending the process.
pub(super) fn install_kick() -> std::io::Result<()> {
    // SAFETY: all zeros is a valid action: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler does nothing but one store; the old action is not asked for.
    let result = unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// The vCPU's thread.
pub(super) fn run(runner: &Runner, vcpu: &Mutex<Vcpu>) {
    while runner.wait_for_start() {
        let mut vcpu = vcpu.lock();
        IMMEDIATE_EXIT.set(&raw mut vcpu.fd.get_kvm_run().immediate_exit);
        let result = vcpu.run_until_stopped(runner);
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
        let progress = vcpu.progress();
        // Release the lock before the report: whoever learns that the guest is parked may take the
        // lock at once.
        drop(vcpu);
        match result {
            Ok(()) => runner.report_parked(progress),
            Err(outcome) => {
                runner.set_progress(progress);
                return runner.report_end(outcome);
            }
        }
    }
}
