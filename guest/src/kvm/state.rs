//! Saves and loads the whole state of the machine and its vCPU.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data,
    kvm_cpuid_entry2, kvm_irqchip, kvm_msr_entry,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use towpath_protocol::fault::Fault;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::cpuid::missing_features;
use crate::sections::{Kind, Sections, refused};

/// Version of every section here. A change in one of KVM's structures needs a new version.
const VERSION: u16 = 1;

/// Bytes of extended processor state that one structure holds.
const XSAVE_BYTES: i32 = 4096;

/// TSC rate difference, in parts per million, that a guest does not notice. KVM tolerates the same.
const TSC_TOLERANCE_PPM: u64 = 250;

/// The time stamp counter: the one register that always advances, so it is always written.
const MSR_TSC: u32 = 0x10;

const CHIPS: [(Kind, u32); 3] = [
    (Kind::Pic, KVM_IRQCHIP_PIC_MASTER),
    (Kind::PicSecondary, KVM_IRQCHIP_PIC_SLAVE),
    (Kind::IoApic, KVM_IRQCHIP_IOAPIC),
];

fn failed(what: &str) -> impl Fn(kvm_ioctls::Error) -> Fault {
    move |error| refused(format!("{what}: {error}"))
}

/// Saves the vCPU's state. The vCPU must be stopped with no device access half done.
///
/// `cpuid` is what the vCPU was configured with: what KVM returns for it later may include more.
pub(super) fn save_vcpu(
    kvm: &Kvm,
    vcpu: &VcpuFd,
    cpuid: &CpuId,
    sections: &mut Sections,
) -> Result<(), Fault> {
    // First, because KVM processes pending events of the local APIC when asked for this.
    let mp_state = vcpu.get_mp_state().map_err(failed("save mp state"))?;
    put(sections, Kind::MpState, &mp_state);
    let registers = vcpu.get_regs().map_err(failed("save registers"))?;
    put(sections, Kind::Registers, &registers);
    let registers = vcpu.get_sregs().map_err(failed("save system registers"))?;
    put(sections, Kind::SystemRegisters, &registers);
    refuse_large_xsave(kvm)?;
    let xsave = vcpu.get_xsave().map_err(failed("save xsave"))?;
    put(sections, Kind::Xsave, &xsave);
    let xcrs = vcpu.get_xcrs().map_err(failed("save xcrs"))?;
    put(sections, Kind::Xcrs, &xcrs);
    let registers = vcpu
        .get_debug_regs()
        .map_err(failed("save debug registers"))?;
    put(sections, Kind::DebugRegisters, &registers);
    let lapic = vcpu.get_lapic().map_err(failed("save local apic"))?;
    put(sections, Kind::LocalApic, &lapic);
    let msrs = read_msrs(kvm, vcpu)?;
    let bytes: Vec<u8> = msrs
        .iter()
        .flat_map(|msr| [u64::from(msr.index), msr.data])
        .flat_map(u64::to_le_bytes)
        .collect();
    sections.put(Kind::Msrs, VERSION, bytes);
    let events = vcpu
        .get_vcpu_events()
        .map_err(failed("save pending events"))?;
    put(sections, Kind::VcpuEvents, &events);
    let tsc_khz = vcpu.get_tsc_khz().map_err(failed("save tsc rate"))?;
    put(sections, Kind::TscKhz, &tsc_khz);
    sections.put(Kind::Cpuid, VERSION, cpuid.as_slice().as_bytes());
    Ok(())
}

/// Loads state into a vCPU that never ran, and returns its CPUID.
pub(super) fn load_vcpu(kvm: &Kvm, vcpu: &VcpuFd, sections: &mut Sections) -> Result<CpuId, Fault> {
    let cpuid = load_cpuid(kvm, vcpu, &sections.take(Kind::Cpuid, VERSION)?)?;
    load_tsc_rate(vcpu, take(sections, Kind::TscKhz)?)?;
    vcpu.set_mp_state(take(sections, Kind::MpState)?)
        .map_err(failed("load mp state"))?;
    vcpu.set_regs(&take(sections, Kind::Registers)?)
        .map_err(failed("load registers"))?;
    vcpu.set_sregs(&take(sections, Kind::SystemRegisters)?)
        .map_err(failed("load system registers"))?;
    vcpu.set_xcrs(&take(sections, Kind::Xcrs)?)
        .map_err(failed("load xcrs"))?;
    refuse_large_xsave(kvm)?;
    let xsave = take(sections, Kind::Xsave)?;
    // SAFETY: the structure is 4096 bytes, and this KVM reads no more than that (asked above).
    unsafe { vcpu.set_xsave(&xsave) }.map_err(failed("load xsave"))?;
    vcpu.set_debug_regs(&take(sections, Kind::DebugRegisters)?)
        .map_err(failed("load debug registers"))?;
    vcpu.set_lapic(&take(sections, Kind::LocalApic)?)
        .map_err(failed("load local apic"))?;
    // After the local APIC, whose timer some of these registers arm.
    load_msrs(vcpu, &sections.take(Kind::Msrs, VERSION)?)?;
    vcpu.set_vcpu_events(&take(sections, Kind::VcpuEvents)?)
        .map_err(failed("load pending events"))?;
    Ok(cpuid)
}

/// Saves the state that all vCPUs share.
pub(super) fn save_machine(vm: &VmFd, sections: &mut Sections) -> Result<(), Fault> {
    for (kind, chip_id) in CHIPS {
        let mut chip = kvm_irqchip {
            chip_id,
            ..kvm_irqchip::default()
        };
        vm.get_irqchip(&mut chip)
            .map_err(failed("save interrupt controller"))?;
        put(sections, kind, &chip);
    }
    let pit = vm.get_pit2().map_err(failed("save timer"))?;
    put(sections, Kind::Pit, &pit);
    let clock = vm.get_clock().map_err(failed("save clock"))?;
    put(sections, Kind::Clock, &clock.clock);
    Ok(())
}

/// Loads the state that all vCPUs share.
pub(super) fn load_machine(vm: &VmFd, sections: &mut Sections) -> Result<(), Fault> {
    for (kind, chip_id) in CHIPS {
        let chip: kvm_irqchip = take(sections, kind)?;
        if chip.chip_id != chip_id {
            let found = chip.chip_id;
            return Err(refused(format!("section {kind:?} is of chip {found}")));
        }
        vm.set_irqchip(&chip)
            .map_err(failed("load interrupt controller"))?;
    }
    vm.set_pit2(&take(sections, Kind::Pit)?)
        .map_err(failed("load timer"))?;
    let clock = kvm_clock_data {
        clock: take(sections, Kind::Clock)?,
        ..kvm_clock_data::default()
    };
    vm.set_clock(&clock).map_err(failed("load clock"))
}

pub(super) fn put<T: IntoBytes + Immutable>(sections: &mut Sections, kind: Kind, value: &T) {
    sections.put(kind, VERSION, value.as_bytes());
}

pub(super) fn take<T: FromBytes>(sections: &mut Sections, kind: Kind) -> Result<T, Fault> {
    let bytes = sections.take(kind, VERSION)?;
    T::read_from_bytes(&bytes).map_err(|_| {
        let (have, want) = (bytes.len(), size_of::<T>());
        refused(format!(
            "section {kind:?} has {have} bytes instead of {want}"
        ))
    })
}

fn refuse_large_xsave(kvm: &Kvm) -> Result<(), Fault> {
    let bytes = kvm.check_extension_int(Cap::Xsave2);
    if bytes > XSAVE_BYTES {
        return Err(refused(format!(
            "this host's processor state takes {bytes} bytes, above {XSAVE_BYTES}"
        )));
    }
    Ok(())
}

fn load_cpuid(kvm: &Kvm, vcpu: &VcpuFd, bytes: &[u8]) -> Result<CpuId, Fault> {
    let size = size_of::<kvm_cpuid_entry2>();
    if bytes.is_empty() || !bytes.len().is_multiple_of(size) {
        let length = bytes.len();
        return Err(refused(format!("cpuid of {length} bytes")));
    }
    let entries: Vec<kvm_cpuid_entry2> = bytes
        .chunks_exact(size)
        .map(|entry| kvm_cpuid_entry2::read_from_bytes(entry).expect("cut to its size"))
        .collect();
    let host = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("supported cpuid"))?;
    let missing = missing_features(&entries, host.as_slice());
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(refused(format!("this host's processor lacks {missing}")));
    }
    let cpuid = CpuId::from_entries(&entries)
        .map_err(|error| refused(format!("cpuid of {} entries: {error:?}", entries.len())))?;
    vcpu.set_cpuid2(&cpuid).map_err(failed("load cpuid"))?;
    Ok(cpuid)
}

fn load_tsc_rate(vcpu: &VcpuFd, wanted_khz: u32) -> Result<(), Fault> {
    let have_khz = vcpu.get_tsc_khz().map_err(failed("tsc rate"))?;
    let tolerated = u64::from(wanted_khz) * TSC_TOLERANCE_PPM / 1_000_000;
    if u64::from(have_khz.abs_diff(wanted_khz)) <= tolerated {
        return Ok(());
    }
    vcpu.set_tsc_khz(wanted_khz).map_err(|error| {
        refused(format!(
            "a tsc of {wanted_khz} kHz on a processor of {have_khz} that does not scale: {error}"
        ))
    })
}

/// Reads every model-specific register that KVM lists. Those that cannot be read do not exist on
/// this vCPU.
fn read_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, Fault> {
    let list = kvm
        .get_msr_index_list()
        .map_err(failed("list of registers"))?;
    let mut left: Vec<u32> = list.as_slice().to_vec();
    let mut read = Vec::with_capacity(left.len());
    // KVM stops at the first register it cannot read. Each iteration removes at least one from the
    // list.
    while !left.is_empty() {
        let entry = |&index: &u32| kvm_msr_entry {
            index,
            ..kvm_msr_entry::default()
        };
        let entries: Vec<kvm_msr_entry> = left.iter().map(entry).collect();
        let mut msrs = Msrs::from_entries(&entries)
            .map_err(|error| refused(format!("{} registers: {error:?}", entries.len())))?;
        let count = vcpu.get_msrs(&mut msrs).map_err(failed("save registers"))?;
        read.extend_from_slice(&msrs.as_slice()[..count]);
        left.drain(..(count + 1).min(left.len()));
    }
    Ok(read)
}

fn read_msr(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let entry = kvm_msr_entry {
        index,
        ..kvm_msr_entry::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).ok()?;
    (vcpu.get_msrs(&mut msrs).ok()? == 1).then(|| msrs.as_slice()[0].data)
}

/// Writes every register that differs here. One that cannot be written makes the load fail.
fn load_msrs(vcpu: &VcpuFd, bytes: &[u8]) -> Result<(), Fault> {
    let (entries, rest) = bytes.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(refused("registers of odd length"));
    }
    for entry in entries {
        let (index, data) = entry.split_at(8);
        let index = u64::from_le_bytes(index.try_into().expect("eight bytes"));
        let data = u64::from_le_bytes(data.try_into().expect("eight bytes"));
        let index = u32::try_from(index).map_err(|_| refused(format!("a register {index:#x}")))?;
        // Many are constants of the processor, readable but not writable.
        if index != MSR_TSC && read_msr(vcpu, index) == Some(data) {
            continue;
        }
        let entry = kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        let msrs = Msrs::from_entries(&[entry])
            .map_err(|error| refused(format!("register {index:#x}: {error:?}")))?;
        if vcpu.set_msrs(&msrs).map_err(failed("load registers"))? != 1 {
            return Err(refused(format!(
                "this host refuses {data:#x} in model-specific register {index:#x}"
            )));
        }
    }
    Ok(())
}
