//! A target's answers about attempts that it has already decided, whatever it does with the guest
//! since.

use super::{Action, Setup, Target};
use crate::message::{Lane, Message};
use crate::ownership::{Origin, Ownership, State, Word};

/// The answers to a source that asks again about an attempt that was decided here. Needs no machine
/// of that attempt, changes nothing, and disturbs no other attempt. `None` if nothing was decided,
/// or if blocks of the guest are still fetched under this attempt.
#[must_use]
pub fn answer(setup: &Setup, ownership: &Ownership, message: &Message) -> Option<Vec<Message>> {
    let origin = Origin {
        attempt: setup.attempt,
        source: setup.source.clone(),
    };
    if let State::Owned { missing_from, .. } = &ownership.record().state
        && *missing_from == Some(origin)
    {
        return None;
    }
    let is_taken = ownership.decision(&setup.source, setup.attempt)?;
    let mut target = Target::begin(setup.clone(), ownership.clone());
    target.link_up = true;
    match message {
        Message::Prepare(_) | Message::Commit(..) if !is_taken => target.say(&Word::Nack),
        Message::Commit(epoch, root) => {
            let (epoch, root) = (*epoch, *root);
            target.hear(Word::Commit { epoch, root }).ok()?;
        }
        _ => return None,
    }
    let said = target
        .actions
        .into_iter()
        .filter_map(|action| match action {
            Action::Send(Lane::Control, message) => Some(message),
            _ => None,
        });
    Some(said.collect())
}
