//! `towpath certs renew`, `revoke`, `ls` and `verify`: the life of a certificate after its issue.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args, ValueEnum};
use serde::Serialize;
use towpath_certs::Authority;
use towpath_certs::check::{self, FolderView};
use towpath_certs::register::{IssuedState, IssuedView, Reason};
use towpath_certs::renewal::{KeyChoice, RevocationTarget};
use towpath_daemon::problem::Problem;
use towpath_protocol::fault::Code;
use towpath_protocol::identity::{HostIdentity, Name};

use super::{days_from_now, overlap_of, show_issued};
use crate::args::OutputOption;
use crate::failure::Failure;
use crate::show::{self, Table, escape, fields, or_dash, telling_digits};

pub(super) const RENEW_EXAMPLES: &str = "\
Examples:
  towpath certs renew --authority ./authority --dir ./box-1
  towpath certs renew --authority ./authority --dir ./box-1 --new-key
  towpath certs renew --authority ./next --overlap ./authority --dir ./box-1

A running tunnel loads the new files without dropping a stream.";

pub(super) const REVOKE_EXAMPLES: &str = "\
Examples:
  towpath certs revoke --authority ./authority --site edge --host box-1 --reason key-compromise
  towpath certs revoke --authority ./authority --serial 4f3a9c51
  towpath certs revoke --authority ./authority --refresh

Then copy crl.pem to every host, to the path of certificates.crl in its tunnel's configuration.
A tunnel without certificates.crl lets revoked hosts in: set it, then reload the tunnel. No
stream is dropped.";

pub(super) const LS_EXAMPLES: &str = "\
Examples:
  towpath certs ls --authority ./authority            list with the shortest unique serials
  towpath certs ls --authority ./authority -o json    print full serials and times of issue";

pub(super) const VERIFY_EXAMPLES: &str = "\
Examples:
  towpath certs verify ./box-1                      check it before copying it to the host
  towpath certs verify /etc/towpath/identity -o json";

/// The remedy for a revoked certificate.
pub(crate) const ISSUE_ANEW: &str = "what is revoked is not renewed: issue another certificate with `towpath certs issue` into a new folder";

/// Where a signed list must be copied to take effect.
const CARRY_LIST: &str = "to each host, to the file that `certificates.crl` of its tunnel names; where none is named, name \
     it and reload the tunnel";

/// The arguments of `towpath certs renew`.
#[derive(Debug, Args)]
pub(crate) struct RenewOptions {
    /// Folder of the authority that signs
    #[arg(long, value_name = "FOLDER")]
    authority: PathBuf,
    /// Folder of the host's files, with cert.pem; key.pem need not be there
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// Generate a new key as well
    #[arg(long)]
    new_key: bool,
    /// Folder of another authority for the host to trust: the previous or the next one
    #[arg(long, value_name = "FOLDER")]
    overlap: Option<PathBuf>,
    /// Validity of the certificate in days, 1 to 825
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=825))]
    days: u32,
    #[command(flatten)]
    pub(super) output: OutputOption,
}

/// The arguments of `towpath certs revoke`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["serial", "host", "refresh"])))]
pub(crate) struct RevokeOptions {
    /// Folder of the authority
    #[arg(long, value_name = "FOLDER")]
    authority: PathBuf,
    /// Serial number of the certificate to revoke, in hexadecimal, or its first digits: at least 8,
    /// and enough to be unique
    #[arg(long, value_name = "NUMBER")]
    serial: Option<String>,
    /// Site of the host of which to revoke all certificates, expired ones too
    #[arg(long, value_name = "NAME", requires = "host")]
    site: Option<Name>,
    /// Name of the host within its site
    #[arg(long, value_name = "NAME", requires = "site")]
    host: Option<Name>,
    /// Revoke nothing, only sign the next list before the last one expires
    #[arg(long)]
    refresh: bool,
    /// Reason for the revocation
    #[arg(long, value_name = "REASON", default_value = "unspecified")]
    reason: ReasonWord,
    /// Validity of the list in days, 1 to 90
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=90))]
    days: u32,
    #[command(flatten)]
    pub(super) output: OutputOption,
}

/// Reasons for a revocation, as in X.509.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ReasonWord {
    // No reason is given.
    Unspecified,
    // The key may be known to others.
    KeyCompromise,
    // Another certificate has replaced it.
    Superseded,
    // The host is out of service.
    CessationOfOperation,
    // The host has lost its rights.
    PrivilegeWithdrawn,
}

impl From<ReasonWord> for Reason {
    fn from(word: ReasonWord) -> Self {
        match word {
            ReasonWord::Unspecified => Self::Unspecified,
            ReasonWord::KeyCompromise => Self::KeyCompromise,
            ReasonWord::Superseded => Self::Superseded,
            ReasonWord::CessationOfOperation => Self::CessationOfOperation,
            ReasonWord::PrivilegeWithdrawn => Self::PrivilegeWithdrawn,
        }
    }
}

/// The arguments of `towpath certs ls`.
#[derive(Debug, Args)]
pub(crate) struct LsOptions {
    /// Folder of the authority
    #[arg(long, value_name = "FOLDER")]
    authority: PathBuf,
    #[command(flatten)]
    pub(super) output: OutputOption,
}

/// The arguments of `towpath certs verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyOptions {
    /// Folder of the host's files: cert.pem, key.pem, ca.pem, and crl.pem if there is one
    dir: PathBuf,
    #[command(flatten)]
    pub(super) output: OutputOption,
}

/// A signed revocation list.
#[derive(Debug, Serialize)]
struct SignedList<'a> {
    file: &'a Path,
    number: u64,
    next_update: String,
    next_update_unix_seconds: u64,
    revoked_count: usize,
    /// Whether the list was signed now. It is not if the named certificates were revoked before.
    is_new: bool,
    /// The revoked certificates that the command named.
    revoked: &'a [IssuedView],
}

/// All certificates of an authority.
#[derive(Debug, Serialize)]
struct Certificates {
    certificates: Vec<Listed>,
}

/// A certificate in the list of `towpath certs ls`.
#[derive(Debug, Serialize)]
struct Listed {
    #[serde(flatten)]
    view: IssuedView,
    /// Whether a later certificate has replaced it.
    is_superseded: bool,
}

pub(super) fn renew(options: &RenewOptions) -> Result<(), Failure> {
    let authority = Authority::open(&options.authority)?;
    let overlap = overlap_of(options.overlap.as_deref())?;
    let key = if options.new_key {
        KeyChoice::New
    } else {
        KeyChoice::Same
    };
    let validity = days_from_now(options.days);
    let renewed = authority.renew(&options.dir, key, validity, overlap.as_ref());
    let renewed =
        renewed.map_err(|fault| Failure::from(fault).remedy_of(Code::State, ISSUE_ANEW))?;
    show_issued(
        options.output.format,
        &renewed.files,
        Some(&renewed.changed),
    )
}

pub(super) fn revoke(options: &RevokeOptions) -> Result<(), Failure> {
    let authority = Authority::open(&options.authority)?;
    let target = match (&options.serial, &options.site, &options.host) {
        (Some(serial), _, _) => Some(RevocationTarget::Serial(serial.clone())),
        (None, Some(site), Some(host)) => Some(RevocationTarget::Host(HostIdentity {
            trust_domain: authority.trust_domain().clone(),
            site: site.clone(),
            host: host.clone(),
        })),
        _ => None,
    };
    let lasting = Duration::from_hours(24 * u64::from(options.days));
    let now = SystemTime::now();
    let signed = match &target {
        Some(target) => authority.revoke(target, options.reason.into(), lasting, now),
        None => authority.sign_next_list(lasting, now),
    };
    let signed = signed.map_err(|fault| {
        let folder = options.authority.display();
        let remedy = format!("see what was issued with `towpath certs ls --authority {folder}`");
        let failure = Failure::from(fault).remedy_of(Code::NotFound, remedy.as_str());
        failure
            .remedy_of(
                Code::Usage,
                format!("{remedy}, and of `towpath certs revoke --help` what it takes"),
            )
            .remedy_of(Code::State, remedy)
    })?;
    let since = signed.next_update.duration_since(SystemTime::UNIX_EPOCH);
    let list = SignedList {
        file: &signed.file,
        number: signed.number,
        next_update: humantime::format_rfc3339_seconds(signed.next_update).to_string(),
        next_update_unix_seconds: since.map_or(0, |since| since.as_secs()),
        revoked_count: signed.revoked_count,
        is_new: signed.is_new,
        revoked: &signed.revoked,
    };
    show::show(options.output.format, "revocation-list", &list, || {
        let revoked: Vec<_> = list.revoked.iter().map(|one| escape(&one.serial)).collect();
        fields(&[
            (
                match list.is_new {
                    true => "revoked",
                    false => "revoked already",
                },
                (!revoked.is_empty()).then(|| revoked.join(", ")),
            ),
            ("list", Some(escape(&list.file.display().to_string()))),
            ("number", Some(list.number.to_string())),
            ("revokes in all", Some(list.revoked_count.to_string())),
            ("next one due", Some(list.next_update.clone())),
            ("to be carried", Some(CARRY_LIST.to_owned())),
        ])
    })
}

pub(super) fn ls(options: &LsOptions) -> Result<(), Failure> {
    let issued = Authority::open(&options.authority)?.issued(SystemTime::now())?;
    let listed = issued.iter().enumerate().map(|(place, one)| Listed {
        view: one.clone(),
        is_superseded: is_superseded(one, &issued[place + 1..]),
    });
    let all = Certificates {
        certificates: listed.collect(),
    };
    show::show(options.output.format, "certificates", &all, || {
        let mut table = Table::new(["SITE", "HOST", "STATE", "UNTIL", "SERIAL", "REVOKED FOR"]);
        let digits = telling_digits(issued.iter().map(|one| one.serial.as_str()));
        for listed in &all.certificates {
            let one = &listed.view;
            let mut state = one.state.as_str().to_owned();
            if listed.is_superseded {
                state.push_str(", superseded");
            }
            table.row([
                one.identity.site.to_string(),
                one.identity.host.to_string(),
                state,
                escape(&one.not_after),
                one.serial.chars().take(digits).collect(),
                or_dash(one.reason.map(|reason| reason.as_str().to_owned())),
            ]);
        }
        table.render("none: issue one with `towpath certs issue`")
    })
}

/// Whether a certificate is good but a later one of the same host, not revoked, has replaced it.
fn is_superseded(one: &IssuedView, younger: &[IssuedView]) -> bool {
    let takes_its_place =
        |next: &IssuedView| next.identity == one.identity && next.state != IssuedState::Revoked;
    one.state == IssuedState::Good && younger.iter().any(takes_its_place)
}

pub(super) fn verify(options: &VerifyOptions) -> Result<(), Failure> {
    let view = check::folder(&options.dir, SystemTime::now());
    show::show(options.output.format, "certificate-check", &view, || {
        checks(&view)
    })?;
    if view.is_good {
        return Ok(());
    }
    let wrong = view
        .checks
        .iter()
        .filter(|one| one.outcome == check::Outcome::Wrong);
    let wrong: Vec<_> = wrong
        .map(|one| format!("{}: {}", one.check, one.detail))
        .collect();
    let remedy = if view.is_revoked {
        ISSUE_ANEW
    } else {
        "mend what is wrong, or renew it with `towpath certs renew`"
    };
    let problem = Problem::new(Code::Certificate, wrong.join("; "));
    let problem = problem.message(format!("{} cannot be used", view.folder));
    Err(Failure::from(problem).remedy_of(Code::Certificate, remedy))
}

fn checks(view: &FolderView) -> String {
    let mut table = Table::new(["CHECK", "OUTCOME", "SEEN"]);
    for one in &view.checks {
        table.row([
            one.check.clone(),
            one.outcome.as_str().to_owned(),
            escape(&one.detail),
        ]);
    }
    table.render("nothing to check")
}
