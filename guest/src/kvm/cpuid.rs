//! Compares the guest's processor features with those of this host.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// A register of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    const fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }
}

/// Registers whose bits are features, each with a mask of bits to ignore because they follow the
/// state of the processor or belong to the machine.
const FEATURE_WORDS: &[(u32, u32, Register, u32)] = &[
    // Ignored: TSC deadline (offered separately), OSXSAVE (follows CR4), hypervisor present.
    (0x1, 0, Register::Ecx, 1 << 24 | 1 << 27 | 1 << 31),
    (0x1, 0, Register::Edx, 0),
    (0x7, 0, Register::Ebx, 0),
    // Ignored: OSPKE, which follows CR4.
    (0x7, 0, Register::Ecx, 1 << 4),
    (0x7, 0, Register::Edx, 0),
    (0x7, 1, Register::Eax, 0),
    (0x7, 1, Register::Ebx, 0),
    (0x7, 1, Register::Ecx, 0),
    (0x7, 1, Register::Edx, 0),
    (0x7, 2, Register::Edx, 0),
    (0xd, 0, Register::Eax, 0),
    (0xd, 0, Register::Edx, 0),
    (0xd, 1, Register::Eax, 0),
    (0x4000_0001, 0, Register::Eax, 0),
    (0x8000_0001, 0, Register::Ecx, 0),
    (0x8000_0001, 0, Register::Edx, 0),
    (0x8000_0007, 0, Register::Edx, 0),
    (0x8000_0008, 0, Register::Ebx, 0),
    (0x8000_0021, 0, Register::Eax, 0),
];

/// Names of well-known features. Others are named by their position.
const NAMES: &[(u32, u32, Register, u32, &str)] = &[
    (0x1, 0, Register::Ecx, 0, "sse3"),
    (0x1, 0, Register::Ecx, 1, "pclmulqdq"),
    (0x1, 0, Register::Ecx, 9, "ssse3"),
    (0x1, 0, Register::Ecx, 12, "fma"),
    (0x1, 0, Register::Ecx, 13, "cx16"),
    (0x1, 0, Register::Ecx, 19, "sse4.1"),
    (0x1, 0, Register::Ecx, 20, "sse4.2"),
    (0x1, 0, Register::Ecx, 21, "x2apic"),
    (0x1, 0, Register::Ecx, 22, "movbe"),
    (0x1, 0, Register::Ecx, 23, "popcnt"),
    (0x1, 0, Register::Ecx, 25, "aes"),
    (0x1, 0, Register::Ecx, 26, "xsave"),
    (0x1, 0, Register::Ecx, 28, "avx"),
    (0x1, 0, Register::Ecx, 29, "f16c"),
    (0x1, 0, Register::Ecx, 30, "rdrand"),
    (0x7, 0, Register::Ebx, 0, "fsgsbase"),
    (0x7, 0, Register::Ebx, 3, "bmi1"),
    (0x7, 0, Register::Ebx, 5, "avx2"),
    (0x7, 0, Register::Ebx, 8, "bmi2"),
    (0x7, 0, Register::Ebx, 9, "erms"),
    (0x7, 0, Register::Ebx, 10, "invpcid"),
    (0x7, 0, Register::Ebx, 16, "avx512f"),
    (0x7, 0, Register::Ebx, 18, "rdseed"),
    (0x7, 0, Register::Ebx, 19, "adx"),
    (0x7, 0, Register::Ebx, 29, "sha"),
    (0x7, 0, Register::Ecx, 3, "pku"),
    (0x7, 0, Register::Ecx, 16, "la57"),
    (0x8000_0001, 0, Register::Edx, 20, "nx"),
    (0x8000_0001, 0, Register::Edx, 26, "1gib-pages"),
    (0x8000_0001, 0, Register::Edx, 27, "rdtscp"),
];

/// The entries that KVM uses for a leaf. The index is compared only if the entry says that it is
/// significant.
fn leaf(
    entries: &[kvm_cpuid_entry2],
    function: u32,
    index: u32,
) -> impl Iterator<Item = &kvm_cpuid_entry2> {
    entries.iter().filter(move |entry| {
        let is_indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        entry.function == function && (!is_indexed || entry.index == index)
    })
}

/// Every feature that the guest's processor has and this host's KVM cannot provide.
pub(super) fn missing_features(
    guest: &[kvm_cpuid_entry2],
    host: &[kvm_cpuid_entry2],
) -> Vec<String> {
    let mut missing = Vec::new();
    if let (Some(guest), Some(host)) = (leaf(guest, 0, 0).next(), leaf(host, 0, 0).next())
        && vendor(guest) != vendor(host)
    {
        let (wanted, have) = (vendor(guest), vendor(host));
        missing.push(format!("a {wanted} processor (this is {have})"));
    }
    for &(function, index, register, ignored) in FEATURE_WORDS {
        // If a peer lists a leaf twice, it is unknown which entry counts, so the features of both
        // are required.
        let wanted = leaf(guest, function, index).fold(0, |all, entry| all | register.of(entry));
        let have = leaf(host, function, index).next();
        let have = have.map_or(0, |entry| register.of(entry));
        let absent = wanted & !have & !ignored;
        let bits = (0..32).filter(|bit| absent & 1 << bit != 0);
        missing.extend(bits.map(|bit| name(function, index, register, bit)));
    }
    missing
}

fn name(function: u32, index: u32, register: Register, bit: u32) -> String {
    let known = NAMES
        .iter()
        .find(|known| (known.0, known.1, known.2, known.3) == (function, index, register, bit));
    known.map_or_else(
        || format!("cpuid {function:#x}.{index} {register:?} bit {bit}").to_lowercase(),
        |known| known.4.to_owned(),
    )
}

fn vendor(entry: &kvm_cpuid_entry2) -> String {
    let bytes: Vec<u8> = [entry.ebx, entry.edx, entry.ecx]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    // These bytes come from a peer and are displayed, so only plain text may pass.
    let plain = |byte: u8| {
        if byte.is_ascii_graphic() {
            byte as char
        } else {
            '?'
        }
    };
    bytes.into_iter().map(plain).collect()
}

/// Adapts the entries that KVM supports to vCPU 0 of this machine.
pub(super) fn personalise(entries: &mut [kvm_cpuid_entry2]) {
    for entry in entries {
        match entry.function {
            0x1 => {
                // Sets "hypervisor present", and the APIC id in the upper byte to 0.
                entry.ecx |= 1 << 31;
                entry.ebx &= 0x00ff_ffff;
            }
            0xb | 0x1f => entry.edx = 0,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        }
    }

    #[test]
    fn f21_every_missing_feature_is_listed() {
        let indexed = |index, registers| kvm_cpuid_entry2 {
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            ..entry(7, index, registers)
        };
        let amd = entry(0, 0, [1, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);
        let intel = entry(0, 0, [1, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
        let guest = [
            amd,
            entry(1, 0, [0, 0, 1 << 25 | 1 << 27 | 1 << 31, 0]),
            indexed(0, [0, 1 << 5 | 1 << 14, 0, 0]),
        ];
        let host = [intel, entry(1, 0, [0, 0, 1 << 26, 0])];
        assert_eq!(
            missing_features(&guest, &host),
            [
                "a AuthenticAMD processor (this is GenuineIntel)",
                "aes",
                "avx2",
                "cpuid 0x7.0 ebx bit 14",
            ]
        );
        assert!(missing_features(&guest, &guest).is_empty());
        // An index that is not significant, and a leaf listed twice.
        let hidden = entry(1, 1, [0, 0, 1 << 25, 0]);
        assert_eq!(missing_features(&[hidden], &host), ["aes"]);
        assert_eq!(missing_features(&[host[1], hidden], &host), ["aes"]);
        let later = [
            indexed(1, [0, 1, 0, 0]),
            indexed(2, [0, 0, 0, 1 << 4]),
            entry(0x8000_0021, 0, [1 << 8, 0, 0, 0]),
        ];
        let missing = missing_features(&later, &host);
        assert_eq!(missing.len(), 3, "{missing:?}");
        assert!(missing_features(&[], &host).is_empty());
    }
}
