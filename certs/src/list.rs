//! A streaming parser for a list of revoked certificates.
//!
//! The library's parser builds a structure of the whole list before anything is checked: thirty
//! times the size of a list that may be signed by nobody. This parser limits the size of the parts
//! around the entries, and reads the entries one at a time.

use std::fmt::Display;

use x509_parser::asn1_rs::{Any, Class, Tag};
use x509_parser::prelude::{FromDer, ParsedExtension, RevokedCertificate, X509Extension};
use x509_parser::time::ASN1Time;
use x509_parser::x509::{AlgorithmIdentifier, X509Name};

/// Most bytes of a name, an algorithm or all extensions; the authorities we know use a few hundred.
const PART_BYTES_MAX: usize = 8 * 1024;

/// Most bytes of one entry: a certificate's serial number, the time, and the reason.
const ENTRY_BYTES_MAX: usize = 1024;

/// The encoded number of version 2, the latest version of the list format.
const SECOND: [u8; 1] = [1];

/// A parsed list. Its signature has not been verified.
#[derive(Debug)]
pub(crate) struct Parsed<'a> {
    /// The bytes that the signature covers.
    pub(crate) signed: &'a [u8],
    pub(crate) signature: &'a [u8],
    pub(crate) algorithm: AlgorithmIdentifier<'a>,
    pub(crate) issuer: X509Name<'a>,
    pub(crate) this_update: ASN1Time,
    pub(crate) next_update: Option<ASN1Time>,
    pub(crate) extensions: Vec<X509Extension<'a>>,
    /// All of them have been checked to parse.
    entries: &'a [u8],
}

impl<'a> Parsed<'a> {
    /// Reads a list in DER.
    ///
    /// # Errors
    ///
    /// A message if it does not parse, or if a part is longer than any list needs.
    pub(crate) fn from_der(der: &'a [u8]) -> Result<Self, String> {
        let mut rest = der;
        let whole = cut(&mut rest, Tag::Sequence)?;
        if !rest.is_empty() {
            return Err("a revocation list has bytes after its end".to_owned());
        }
        let mut rest = whole.content;
        let signed = cut(&mut rest, Tag::Sequence)?;
        let algorithm = cut(&mut rest, Tag::Sequence)?;
        let signature = cut(&mut rest, Tag::BitString)?;
        let signature = signature.content.split_first();
        let (_, signature) = signature
            .filter(|(unused, _)| rest.is_empty() && **unused == 0)
            .ok_or_else(|| wrong("its signature"))?;

        let mut rest = signed.content;
        if next_is(rest, Tag::Integer) && cut(&mut rest, Tag::Integer)?.content != SECOND {
            return Err(wrong("its version"));
        }
        if cut(&mut rest, Tag::Sequence)?.raw != algorithm.raw {
            return Err("a revocation list names two algorithms for one signature".to_owned());
        }
        let issuer = cut(&mut rest, Tag::Sequence)?;
        let this_update = cut_time(&mut rest)?;
        let is_time = next_is(rest, Tag::UtcTime) || next_is(rest, Tag::GeneralizedTime);
        let next_update = is_time.then(|| cut_time(&mut rest)).transpose()?;
        let entries = if next_is(rest, Tag::Sequence) {
            cut(&mut rest, Tag::Sequence)?.content
        } else {
            &[]
        };
        let parsed = Self {
            signed: signed.raw,
            signature,
            algorithm: whole_of(algorithm.raw)?,
            issuer: whole_of(issuer.raw)?,
            this_update,
            next_update,
            extensions: extensions(rest)?,
            entries,
        };
        parsed.entries().try_for_each(|entry| entry.map(drop))?;
        Ok(parsed)
    }

    /// The serial numbers of the revoked certificates, as encoded.
    pub(crate) fn serials(&self) -> impl Iterator<Item = &'a [u8]> {
        self.entries().filter_map(Result::ok)
    }

    /// The number of the list; an error if it has none, or one that does not fit a `u64`.
    pub(crate) fn number(&self) -> Result<u64, String> {
        let number = self.extensions.iter().find_map(|extension| {
            let ParsedExtension::CRLNumber(number) = extension.parsed_extension() else {
                return None;
            };
            Some(number)
        });
        number
            .ok_or("a revocation list has no number")?
            .try_into()
            .map_err(|_| "a revocation list's number is above 2^64".to_owned())
    }

    /// The serial number of each entry, ending with the first entry that does not parse.
    fn entries(&self) -> impl Iterator<Item = Result<&'a [u8], String>> {
        let mut rest = self.entries;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let entry = cut(&mut rest, Tag::Sequence).and_then(|entry| {
                if entry.raw.len() > ENTRY_BYTES_MAX {
                    return Err(wrong("an entry that is too long"));
                }
                RevokedCertificate::from_der(entry.raw).map_err(wrong)?;
                let mut parts = entry.content;
                Ok(cut(&mut parts, Tag::Integer)?.content)
            });
            if entry.is_err() {
                rest = &[];
            }
            Some(entry)
        })
    }
}

/// A DER element, with its header (`raw`) and without (`content`).
struct Part<'a> {
    raw: &'a [u8],
    content: &'a [u8],
}

/// Cuts off the next element, which must have the given tag.
fn cut<'a>(rest: &mut &'a [u8], tag: Tag) -> Result<Part<'a>, String> {
    let bytes = *rest;
    let (behind, any) = Any::from_der(bytes).map_err(wrong)?;
    if any.class() != Class::Universal || any.tag() != tag {
        return Err(wrong(format_args!("{tag} is not where it should be")));
    }
    *rest = behind;
    Ok(Part {
        raw: &bytes[..bytes.len() - behind.len()],
        content: any.data,
    })
}

/// Whether the next element has the given tag.
fn next_is(rest: &[u8], tag: Tag) -> bool {
    rest.first()
        .is_some_and(|first| u32::from(first & 0x1f) == tag.0 && first & 0xc0 == 0)
}

fn cut_time(rest: &mut &[u8]) -> Result<ASN1Time, String> {
    let (behind, time) = ASN1Time::from_der(rest).map_err(wrong)?;
    *rest = behind;
    Ok(time)
}

/// Parses all of `bytes` as one value, if they are not too many.
fn whole_of<'a, T: FromDer<'a, E>, E: std::fmt::Debug + Display>(
    bytes: &'a [u8],
) -> Result<T, String>
where
    x509_parser::nom::Err<E>: Display,
{
    if bytes.len() > PART_BYTES_MAX {
        return Err(wrong("a part that is too long"));
    }
    match T::from_der(bytes) {
        Ok(([], made)) => Ok(made),
        Ok(_) => Err(wrong("bytes after a part's end")),
        Err(error) => Err(wrong(error)),
    }
}

/// Parses the extensions, which come last in the signed part.
fn extensions(rest: &[u8]) -> Result<Vec<X509Extension<'_>>, String> {
    if rest.is_empty() {
        return Ok(Vec::new());
    }
    if rest.len() > PART_BYTES_MAX {
        return Err(wrong("extensions that are too long"));
    }
    let (behind, tagged) = Any::from_der(rest).map_err(wrong)?;
    if tagged.class() != Class::ContextSpecific || tagged.tag() != Tag(0) || !behind.is_empty() {
        return Err(wrong("something after its entries"));
    }
    let mut rest = tagged.data;
    let mut inner = cut(&mut rest, Tag::Sequence)?.content;
    if !rest.is_empty() {
        return Err(wrong("bytes after its extensions"));
    }
    let mut all = Vec::new();
    while !inner.is_empty() {
        let (behind, extension) = X509Extension::from_der(inner).map_err(wrong)?;
        all.push(extension);
        inner = behind;
    }
    Ok(all)
}

fn wrong(what: impl Display) -> String {
    format!("a revocation list does not parse: {what}")
}
