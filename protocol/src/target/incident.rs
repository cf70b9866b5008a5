//! What is known of an image that the two sides disagree about.

use crate::fault::{Code, Fault};
use crate::image::{Image, MISSING_BLOCKS, Manifest, STATE};
use crate::message::FinalEnd;
use crate::ownership::Root;

/// An image that is refused because it differs from the one that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// The reason of the refusal.
    pub fault: Fault,
    /// The manifest of the image here.
    pub ours: Manifest,
    /// The root of the image here.
    pub root: Root,
    /// The source's manifest; `None` if the source did not send one.
    pub theirs: Option<Manifest>,
    /// The source's end of the paused stage.
    pub end: FinalEnd,
    /// The parts that differ, as far as known.
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
        // The end of the paused stage repeats two of the figures. They count too, even if the
        // source sent no manifest or a contradicting one.
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
