//! What is known of an image that the two sides do not agree about.

use crate::fault::{Code, Fault};
use crate::image::{Image, MISSING_BLOCKS, Manifest, STATE};
use crate::message::FinalEnd;
use crate::ownership::Root;

/// An image that is refused because it is not the one that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// Why it is refused.
    pub fault: Fault,
    /// What is here.
    pub ours: Manifest,
    /// Its root.
    pub root: Root,
    /// What the source says that it sent; none from one that does not say it.
    pub theirs: Option<Manifest>,
    /// How the source ended the paused stage.
    pub end: FinalEnd,
    /// The parts that differ, as far as that is known.
    pub differs: Vec<&'static str>,
}

impl Incident {
    pub(super) fn new(
        what: String,
        image: &Image<'_>,
        theirs: Option<Manifest>,
        end: FinalEnd,
    ) -> Self {
        let ours = image.manifest();
        let mut differs = theirs.map_or_else(Vec::new, |theirs| ours.differences(&theirs));
        // Its last word has two of the figures too, also from a source that says no more, or says another here.
        let figures = [
            (MISSING_BLOCKS, ours.missing_count == end.missing_count),
            (STATE, ours.state_bytes == u64::from(end.state_bytes)),
        ];
        for (part, is_same) in figures {
            if !is_same && !differs.contains(&part) {
                differs.push(part);
            }
        }
        let told = match (differs.is_empty(), theirs) {
            (false, _) => format!("; what differs: {}", differs.join(", ")),
            (true, Some(_)) => "; the source names the same parts as are here".to_owned(),
            (true, None) => String::new(),
        };
        Self {
            fault: Fault::new(Code::RootMismatch, what + &told),
            ours,
            root: image.root(),
            theirs,
            end,
            differs,
        }
    }
}
