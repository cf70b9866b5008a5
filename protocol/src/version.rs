//! Version ranges and their negotiation: the highest version that both sides speak wins.
//!
//! A side speaks its own version and the one before (as cloud-hypervisor does), never more, so that
//! each release tests every pair it claims to support.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault};

/// The versions that a side speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest version.
    pub min: u16,
    /// The newest version.
    pub max: u16,
}

/// The versions that this release speaks between migrators.
pub const OURS: VersionRange = VersionRange { min: 1, max: 1 };

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.min, self.max)
    }
}

/// One of two sides, by the name an operator knows it by, with its versions. Both sides name both,
/// so that a refusal reads the same wherever it is shown.
#[derive(Debug, Clone, Copy)]
pub struct Speaker<'a> {
    /// Its name, as in `the tunnel of edge/box-1`.
    pub name: &'a str,
    /// The versions it speaks.
    pub versions: VersionRange,
}

impl Speaker<'_> {
    /// Chooses the version for two sides.
    ///
    /// # Errors
    ///
    /// `E_VERSION`, with both ranges and which side to upgrade, if they have no version in common
    /// or a range is empty.
    pub fn negotiate(&self, peer: &Speaker<'_>) -> Result<u16, Fault> {
        let (ours, theirs) = (self.versions, peer.versions);
        let version = ours.max.min(theirs.max);
        let is_ordered = ours.min <= ours.max && theirs.min <= theirs.max;
        if is_ordered && version >= ours.min && version >= theirs.min {
            return Ok(version);
        }
        let older = if ours.max < theirs.max { self } else { peer };
        let detail = format!(
            "{} speaks versions {ours} and {} {theirs}: upgrade {}",
            self.name, peer.name, older.name
        );
        Err(Fault::new(Code::Version, detail))
    }

    /// Checks the version that a peer has chosen.
    ///
    /// # Errors
    ///
    /// `E_VERSION` if this side does not speak it.
    pub fn accept(&self, chosen: u16, peer: &str) -> Result<(), Fault> {
        let ours = self.versions;
        if (ours.min..=ours.max).contains(&chosen) {
            return Ok(());
        }
        let older = if chosen > ours.max { self.name } else { peer };
        let detail = format!(
            "{} speaks versions {ours} and {peer} chose {chosen}: upgrade {older}",
            self.name
        );
        Err(Fault::new(Code::Version, detail))
    }

    /// Rewords a peer's refusal for showing it here. Its text comes from the peer's release: an old
    /// one says `we`, and may not name the versions of this side.
    #[must_use]
    pub fn refused_by(&self, peer: &str, said: &Fault) -> Fault {
        if said.code != Code::Version {
            return said.clone();
        }
        let mut detail = format!("{peer} refuses: {}", said.detail);
        let ours = self.versions.to_string();
        if !said.detail.contains(&ours) {
            detail = format!("{detail}; {} speaks versions {ours}", self.name);
        }
        Fault::new(Code::Version, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaker(name: &str, (min, max): (u16, u16)) -> Speaker<'_> {
        let versions = VersionRange { min, max };
        Speaker { name, versions }
    }

    #[test]
    fn f29_the_highest_common_version_wins_and_no_overlap_names_both_ranges() {
        let negotiate = |ours, theirs| speaker("edge", ours).negotiate(&speaker("region", theirs));
        assert_eq!(negotiate((2, 4), (3, 9)), Ok(4));
        assert_eq!(negotiate((3, 9), (2, 4)), Ok(4));
        for (ours, theirs, told) in [
            (
                (3, 4),
                (1, 2),
                "edge speaks versions 3..=4 and region 1..=2: upgrade region",
            ),
            (
                (1, 2),
                (3, 4),
                "edge speaks versions 1..=2 and region 3..=4: upgrade edge",
            ),
            (
                (1, 2),
                (2, 1),
                "edge speaks versions 1..=2 and region 2..=1: upgrade region",
            ),
        ] {
            let fault = negotiate(ours, theirs).expect_err("no overlap");
            assert_eq!((fault.code, &*fault.detail), (Code::Version, told));
        }
    }

    #[test]
    fn f29_a_choice_and_a_refusal_are_shown_with_what_is_spoken_here() {
        let ours = speaker("edge", (2, 3));
        assert_eq!(ours.accept(3, "region"), Ok(()));
        for (chosen, told) in [
            (
                9,
                "edge speaks versions 2..=3 and region chose 9: upgrade edge",
            ),
            (
                1,
                "edge speaks versions 2..=3 and region chose 1: upgrade region",
            ),
        ] {
            let fault = ours.accept(chosen, "region").expect_err("not spoken");
            assert_eq!((fault.code, &*fault.detail), (Code::Version, told));
        }
        for (said, told) in [
            (
                "we speak versions 8..=9 and the peer 2..=3",
                "region refuses: we speak versions 8..=9 and the peer 2..=3",
            ),
            (
                "too old",
                "region refuses: too old; edge speaks versions 2..=3",
            ),
        ] {
            let fault = ours.refused_by("region", &Fault::new(Code::Version, said));
            assert_eq!((fault.code, &*fault.detail), (Code::Version, told));
        }
        let busy = Fault::new(Code::Busy, "later");
        assert_eq!(ours.refused_by("region", &busy), busy);
    }
}
