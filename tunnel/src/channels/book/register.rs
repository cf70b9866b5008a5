//! The register: the text in which pushed channels are kept over a restart. Pure.
//!
//! Only pushed channels are kept: configured ones are read from the configuration again.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

use super::{Book, CHANNEL_COUNT_MAX, ChannelSpec};

/// Most bytes of the text: room for twice as many names as there may be channels, each with a Unix
/// socket path of the longest length.
pub(crate) const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Identifies the text and its format.
const SCHEMA: &str = "towpath.v1.channel-register";

/// The content of the register.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Register {
    schema: String,
    #[serde(deserialize_with = "few")]
    known: Vec<Entry>,
}

/// One name.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Name,
    generation: u64,
    /// `None` for a removed channel, whose older generations stay refused. Whether a channel has
    /// expired is judged anew after a restart.
    spec: Option<ChannelSpec>,
}

/// Most names in the text: the channels, and as many removed ones.
const NAME_COUNT_MAX: usize = 2 * CHANNEL_COUNT_MAX;

/// Reads at most as many names as a book may have: parsing more of them could take ten times the
/// text's size in memory.
fn few<'de, D: Deserializer<'de>>(names: D) -> Result<Vec<Entry>, D::Error> {
    struct Few;
    impl<'de> Visitor<'de> for Few {
        type Value = Vec<Entry>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {NAME_COUNT_MAX} names")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(entry) = names.next_element()? {
                if all.len() == NAME_COUNT_MAX {
                    return Err(Error::invalid_length(NAME_COUNT_MAX + 1, &self));
                }
                all.push(entry);
            }
            Ok(all)
        }
    }
    names.deserialize_seq(Few)
}

impl Book {
    /// Encodes the pushed channels.
    ///
    /// # Errors
    ///
    /// `E_IO` if the text is too long, which the bounds of a book exclude.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Fault> {
        let pushed = self.0.iter().filter(|(_, known)| known.is_pushed);
        let known = pushed.map(|(name, known)| Entry {
            name: name.clone(),
            generation: known.generation,
            spec: known.spec.as_deref().cloned(),
        });
        let register = Register {
            schema: SCHEMA.to_owned(),
            known: known.collect(),
        };
        let text = serde_json::to_vec_pretty(&register);
        text.ok()
            .filter(|text| text.len() <= TEXT_BYTES_MAX)
            .ok_or_else(|| Fault::new(Code::Io, "the register of channels is too long"))
    }

    /// Decodes a book.
    ///
    /// # Errors
    ///
    /// `E_META` if no book would be encoded so.
    pub(crate) fn decode(text: &[u8]) -> Result<Self, Fault> {
        let wrong = |why: String| Fault::new(Code::Meta, format!("the register of channels {why}"));
        if text.len() > TEXT_BYTES_MAX {
            return Err(wrong("is too long".to_owned()));
        }
        let register: Register = serde_json::from_slice(text)
            .map_err(|error| wrong(format!("does not parse: {error}")))?;
        if register.schema != SCHEMA {
            return Err(wrong(format!("is none but `{}`", register.schema)));
        }
        let mut book = Self::default();
        for Entry {
            name,
            generation,
            spec,
        } in register.known
        {
            let is_its_own =
                |spec: &ChannelSpec| spec.name == name && spec.generation == generation;
            if !spec.as_ref().is_none_or(is_its_own) || book.0.contains_key(&name) {
                return Err(wrong(format!("contradicts itself about {name}")));
            }
            book.remember(name, generation, spec);
        }
        Ok(book)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use towpath_protocol::class::Class;

    use super::*;
    use crate::channels::book::{Change, Origin};

    fn spec(name: &str, generation: u64, expires: Option<u64>) -> ChannelSpec {
        let listen = "tcp:127.0.0.1:7001".parse().unwrap();
        let service = ("region".parse().unwrap(), "till".parse().unwrap());
        ChannelSpec {
            generation,
            expires_unix_seconds: expires,
            ..ChannelSpec::new(name.parse().unwrap(), listen, service, Class::Demand)
        }
    }

    #[test]
    fn con_11_generations_are_remembered_of_channels_and_of_removed_ones() {
        let mut book = Book::default();
        for (name, generation) in [("one", 5), ("two", 7)] {
            book.open(&Arc::new(spec(name, generation, Some(900))), Origin::Pushed);
        }
        book.open(&Arc::new(spec("fixed", 0, None)), Origin::Configured);
        book.close(&"two".parse().unwrap(), Some(9)).unwrap();
        let again = Book::decode(&book.encode().unwrap()).unwrap();
        assert_eq!(again.specs(), [Arc::new(spec("one", 5, Some(900)))]);
        let weigh = |spec: &ChannelSpec| {
            again
                .weigh(spec, Origin::Pushed, 100)
                .map_err(|fault| fault.code)
        };
        assert_eq!(weigh(&spec("one", 5, Some(900))), Ok(Change::Same));
        assert_eq!(weigh(&spec("one", 4, None)), Err(Code::State));
        assert_eq!(weigh(&spec("one", 6, None)), Ok(Change::Open));
        assert_eq!(weigh(&spec("two", 9, None)), Err(Code::State), "removed");
        assert_eq!(weigh(&spec("two", 10, None)), Ok(Change::Open));
        assert_eq!(
            weigh(&spec("fixed", 0, None)),
            Ok(Change::Open),
            "as configured"
        );
    }

    #[test]
    fn con_7_what_expired_meanwhile_is_gone_and_its_generation_is_not() {
        let mut book = Book::default();
        book.open(&Arc::new(spec("one", 5, Some(900))), Origin::Pushed);
        let mut again = Book::decode(&book.encode().unwrap()).unwrap();
        assert_eq!(again.expire(1000).len(), 1);
        assert!(again.specs().is_empty());
        let older = again.weigh(&spec("one", 4, None), Origin::Pushed, 1000);
        assert_eq!(older.unwrap_err().code, Code::State);
    }

    #[test]
    fn a_register_that_no_book_would_write_is_refused() {
        let mut book = Book::default();
        book.open(&Arc::new(spec("one", 5, None)), Origin::Pushed);
        let text = String::from_utf8(book.encode().unwrap()).unwrap();
        assert!(Book::decode(text.as_bytes()).is_ok());
        for (from, to) in [
            ("towpath.v1", "towpath.v2"),
            ("\"generation\": 5", "\"generation\": 4"),
            ("\"name\": \"one\"", "\"name\": \"two\""),
            ("\"name\": \"one\"", "\"name\": \"../one\""),
            ("tcp:127.0.0.1:7001", "nowhere"),
        ] {
            assert!(text.contains(from), "{text}");
            let wrong = text.replacen(from, to, 1);
            assert_eq!(
                Book::decode(wrong.as_bytes()).unwrap_err().code,
                Code::Meta,
                "{to}"
            );
        }
        for end in 0..text.len() {
            assert!(Book::decode(&text.as_bytes()[..end]).is_err());
        }
        let long = vec![b' '; TEXT_BYTES_MAX + 1];
        assert_eq!(Book::decode(&long).unwrap_err().code, Code::Meta);
    }

    #[test]
    fn names_beyond_those_of_a_full_book_are_not_even_read() {
        let entry = r#"{"name":"one","generation":1,"spec":null},"#;
        let many = entry.repeat(NAME_COUNT_MAX + 1);
        let text = format!("{{\"schema\":\"{SCHEMA}\",\"known\":[{many} no JSON any more");
        let fault = Book::decode(text.as_bytes()).unwrap_err();
        assert!(fault.detail.contains("at most 2048 names"), "{fault}");
    }

    #[test]
    fn a_full_book_fits() {
        let mut book = Book::default();
        let path = format!("unix:/{}", "p".repeat(100));
        for number in 0..2 * CHANNEL_COUNT_MAX {
            let mut one = spec(&format!("{number:063}"), u64::MAX, Some(u64::MAX));
            one.listen = path.parse().unwrap();
            one.service = "s".repeat(63).parse().unwrap();
            one.peer = "p".repeat(63).parse().unwrap();
            book.open(&Arc::new(one), Origin::Pushed);
        }
        let text = book.encode().unwrap();
        assert_eq!(Book::decode(&text).unwrap().encode().unwrap(), text);
    }
}
