//! The site authority: creates, issues and shows certificates, and holds the certificate checks
//! that both daemons share.
//!
//! One private authority per trust domain signs one certificate per host. A host *is* the URI in its
//! certificate, `spiffe://<trust domain>/site/<site>/host/<host>`; DNS names and addresses prove
//! nothing here, because boxes at an edge change theirs.
//!
//! | module | what it holds |
//! |---|---|
//! | [`authority`] | creating the authority, issuing certificates |
//! | [`renewal`] | the next certificate of a host, under this authority or the next one |
//! | [`register`] | the log of what the authority has issued and revoked |
//! | [`revocation`] | lists of revoked certificates: loading and lookup |
//! | `list` | a streaming parser for the bytes of a list |
//! | [`check`] | checks a host's folder the way its tunnel will |
//! | [`files`] | writing and reading key files without trusting the folder |
//! | [`identity`] | loading a host's own certificate and key |
//! | [`verify`] | what a peer's certificate must prove, and why one was refused |
//! | [`tls`] | the only TLS settings that Towpath uses |
//! | [`view`] | a certificate as operators see it |
#![forbid(unsafe_code)]

pub mod authority;
pub mod check;
pub mod files;
pub mod identity;
mod list;
pub mod register;
pub mod renewal;
pub mod revocation;
pub mod tls;
pub mod verify;
pub mod view;

pub use authority::{Authority, Validity};
pub use identity::{Authorities, Identity, IdentityPaths};
pub use revocation::{Freshness, Revocations};
pub use verify::{Refusal, Rejection, Rejections};
pub use view::{CertificateView, show, show_chain};
