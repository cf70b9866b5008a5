//! The site authority: create, issue, check identities.
