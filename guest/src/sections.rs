//! A guest's state as versioned sections.
//!
//! ```text
//!   magic "TPGS" | format u16 | section count u16 | { kind u16 | version u16 | bytes u32 | payload }*
//! ```
//!
//! All numbers are little-endian. Loading takes sections out one by one and fails if one is
//! missing, has a version this release does not know, or is left over: a section that was not
//! looked at would be state lost.

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::message::STATE_BYTES_MAX;

const MAGIC: [u8; 4] = *b"TPGS";

/// Version of the envelope.
const FORMAT: u16 = 1;

/// Most sections that a state may have: three times as many as ours has.
const SECTION_COUNT_MAX: usize = 64;

/// The kinds of sections. The numbers are on the wire and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Kind {
    Workload = 1,
    Console = 2,
    Registers = 16,
    SystemRegisters = 17,
    Xsave = 18,
    Xcrs = 19,
    DebugRegisters = 20,
    LocalApic = 21,
    Msrs = 22,
    VcpuEvents = 23,
    MpState = 24,
    TscKhz = 25,
    Cpuid = 26,
    Pic = 32,
    PicSecondary = 33,
    IoApic = 34,
    Pit = 35,
    Clock = 36,
    Serial = 37,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Section {
    kind: u16,
    version: u16,
    payload: Vec<u8>,
}

/// The sections of one guest's state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sections(Vec<Section>);

impl Sections {
    /// Adds a section. Each kind may appear once.
    pub(crate) fn put(&mut self, kind: Kind, version: u16, payload: impl Into<Vec<u8>>) {
        let kind = kind as u16;
        assert!(
            self.0.iter().all(|section| section.kind != kind),
            "section {kind} twice"
        );
        self.0.push(Section {
            kind,
            version,
            payload: payload.into(),
        });
    }

    /// Removes and returns a section's payload.
    pub(crate) fn take(&mut self, kind: Kind, version: u16) -> Result<Vec<u8>, Fault> {
        let wanted = kind as u16;
        let Some(position) = self.0.iter().position(|section| section.kind == wanted) else {
            return Err(refused(format!("the state has no section {kind:?}")));
        };
        let section = self.0.swap_remove(position);
        if section.version != version {
            let found = section.version;
            return Err(refused(format!(
                "section {kind:?} is of version {found}, this host knows {version}"
            )));
        }
        Ok(section.payload)
    }

    /// Fails if any section was not taken.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        if self.0.is_empty() {
            return Ok(());
        }
        let left: Vec<u16> = self.0.iter().map(|section| section.kind).collect();
        Err(refused(format!(
            "the state has sections {left:?} that this host does not know"
        )))
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, Fault> {
        let count = u16::try_from(self.0.len()).expect("one section a kind");
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        for section in &self.0 {
            let length = u32::try_from(section.payload.len())
                .map_err(|_| refused("a section above 4 GiB"))?;
            bytes.extend_from_slice(&section.kind.to_le_bytes());
            bytes.extend_from_slice(&section.version.to_le_bytes());
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&section.payload);
        }
        if bytes.len() > STATE_BYTES_MAX {
            let length = bytes.len();
            return Err(refused(format!(
                "a state of {length} bytes is above the cap of {STATE_BYTES_MAX}"
            )));
        }
        Ok(bytes)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.len() > STATE_BYTES_MAX {
            return Err(refused("a state above its cap"));
        }
        let mut rest = bytes;
        if cut::<4>(&mut rest)? != MAGIC {
            return Err(refused("the state does not begin as one"));
        }
        let format = u16::from_le_bytes(cut(&mut rest)?);
        if format != FORMAT {
            return Err(refused(format!(
                "the state is of format {format}, this host knows {FORMAT}"
            )));
        }
        let count = usize::from(u16::from_le_bytes(cut(&mut rest)?));
        if count > SECTION_COUNT_MAX {
            return Err(refused(format!("a state of {count} sections")));
        }
        let mut sections = Vec::with_capacity(count);
        for _ in 0..count {
            let section = cut_section(&mut rest)?;
            let is_new = |known: &Section| known.kind != section.kind;
            if !sections.iter().all(is_new) {
                let kind = section.kind;
                return Err(refused(format!("the state has section {kind} twice")));
            }
            sections.push(section);
        }
        if !rest.is_empty() {
            let left = rest.len();
            return Err(refused(format!("the state has {left} bytes left over")));
        }
        Ok(Self(sections))
    }
}

/// Decodes a state as far as its sections and encodes it again. For fuzzing, because it needs no
/// machine.
///
/// # Errors
///
/// `E_CPU_STATE` if the bytes are not a state.
pub fn reread_state(bytes: &[u8]) -> Result<Vec<u8>, Fault> {
    Sections::from_bytes(bytes)?.to_bytes()
}

fn cut_section(rest: &mut &[u8]) -> Result<Section, Fault> {
    let kind = u16::from_le_bytes(cut(rest)?);
    let version = u16::from_le_bytes(cut(rest)?);
    let length = u32::from_le_bytes(cut(rest)?) as usize;
    let (payload, behind) = rest
        .split_at_checked(length)
        .ok_or_else(|| refused(format!("section {kind} ends before its {length} bytes")))?;
    *rest = behind;
    Ok(Section {
        kind,
        version,
        payload: payload.to_vec(),
    })
}

fn cut<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Fault> {
    let (bytes, behind) = rest
        .split_first_chunk()
        .ok_or_else(|| refused("the state ends too early"))?;
    *rest = behind;
    Ok(*bytes)
}

/// The fault for a state that this host cannot load.
pub(crate) fn refused(detail: impl Into<String>) -> Fault {
    Fault::new(Code::CpuState, detail)
}

/// Reads the fixed-size fields of a section.
#[derive(Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn u64(&mut self) -> Result<u64, Fault> {
        cut(&mut self.0).map(u64::from_le_bytes)
    }

    pub(crate) fn finish(self) -> Result<(), Fault> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(refused("a section has bytes left over"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sections() -> Sections {
        let mut sections = Sections::default();
        sections.put(Kind::Workload, 1, vec![1, 2, 3]);
        sections.put(Kind::Console, 2, vec![]);
        sections
    }

    fn code(result: Result<impl std::fmt::Debug, Fault>) -> Code {
        result.expect_err("refused").code
    }

    #[test]
    fn sections_round_trip_and_each_must_be_taken() {
        let bytes = sections().to_bytes().unwrap();
        let mut read = Sections::from_bytes(&bytes).unwrap();
        assert_eq!(read, sections());
        assert_eq!(read.take(Kind::Workload, 1), Ok(vec![1, 2, 3]));
        assert_eq!(code(read.clone().finish()), Code::CpuState);
        assert_eq!(code(read.take(Kind::Pit, 1)), Code::CpuState);
        assert_eq!(read.take(Kind::Console, 2), Ok(vec![]));
        assert_eq!(read.finish(), Ok(()));
    }

    #[test]
    fn a_section_of_another_version_is_refused() {
        assert_eq!(code(sections().take(Kind::Workload, 2)), Code::CpuState);
    }

    #[test]
    fn cut_states_and_longer_ones_and_doubles_are_refused() {
        let bytes = sections().to_bytes().unwrap();
        for length in 0..bytes.len() {
            assert_eq!(code(Sections::from_bytes(&bytes[..length])), Code::CpuState);
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(code(Sections::from_bytes(&longer)), Code::CpuState);
        let mut double = sections();
        double.0.push(double.0[0].clone());
        let double = double.to_bytes().unwrap();
        assert_eq!(code(Sections::from_bytes(&double)), Code::CpuState);
    }

    proptest! {
        #[test]
        fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(Sections::from_bytes(&bytes).is_err());
        }
    }
}
