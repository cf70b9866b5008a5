//! Version ranges and their negotiation: the highest version both sides speak wins.
//!
//! A side speaks its own version and the one before (as cloud-hypervisor does), never more, so that
//! each release tests every pair it claims.

use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault};

/// Versions a side speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VersionRange {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

/// What this release speaks between migrators.
pub const OURS: VersionRange = VersionRange { min: 1, max: 1 };

impl VersionRange {
    /// The version two sides use.
    ///
    /// # Errors
    ///
    /// `E_VERSION`, with both ranges, if there is none in common or a range is empty.
    pub fn negotiate(self, peer: Self) -> Result<u16, Fault> {
        let version = self.max.min(peer.max);
        let ordered = self.min <= self.max && peer.min <= peer.max;
        if !ordered || version < self.min || version < peer.min {
            return Err(Fault::new(
                Code::Version,
                format!(
                    "we speak versions {}..={} and the peer {}..={}; upgrade the older side",
                    self.min, self.max, peer.min, peer.max
                ),
            ));
        }
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f29_the_highest_common_version_wins_and_no_overlap_names_both_ranges() {
        let range = |min, max| VersionRange { min, max };
        assert_eq!(range(2, 4).negotiate(range(3, 9)), Ok(4));
        assert_eq!(range(3, 9).negotiate(range(2, 4)), Ok(4));
        for (ours, theirs) in [
            (range(3, 4), range(1, 2)),
            (range(1, 2), range(3, 4)),
            (range(1, 2), range(2, 1)),
        ] {
            let fault = ours.negotiate(theirs).expect_err("no overlap");
            assert_eq!(fault.code, Code::Version);
            assert!(
                fault
                    .detail
                    .contains(&format!("{}..={}", theirs.min, theirs.max))
            );
        }
    }
}
