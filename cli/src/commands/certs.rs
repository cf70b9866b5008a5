//! `towpath certs`: manages the authority of a trust domain and the certificates of its hosts.

mod lifecycle;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use serde::Serialize;
use towpath_certs::authority::IdentityFiles;
use towpath_certs::renewal::OtherAuthority;
use towpath_certs::revocation::{self, WholeListView};
use towpath_certs::{Authority, CertificateView, Validity, show as read_certificate, show_chain};
use towpath_protocol::fault::Code;
use towpath_protocol::identity::{HostIdentity, Name};

pub(crate) use self::lifecycle::ISSUE_ANEW;
use crate::args::OutputOption;
use crate::failure::Failure;
use crate::show::{self, Format, escape, fields};

pub(crate) const EXAMPLES: &str = "\
Examples:
  towpath certs init --dir ./authority --trust-domain shop.example
  towpath certs issue --authority ./authority --site edge --host box-1 --out ./box-1
  towpath certs verify ./box-1                      check that a tunnel can start with it";

const INIT_EXAMPLES: &str = "\
Example:
  towpath certs init --dir ./authority --trust-domain shop.example

Keep the folder off the hosts: whoever has ca.key can issue certificates to hosts.";

const ISSUE_EXAMPLES: &str = "\
Example:
  towpath certs issue --authority ./authority --site edge --host box-1 --out ./box-1

Then copy ./box-1 to the host, to the paths in its tunnel's configuration.";

const SHOW_EXAMPLES: &str = "\
Examples:
  towpath certs show ./box-1/cert.pem               show the host it names, and its expiry
  towpath certs show ./box-1/ca.pem                 show each trusted authority
  towpath certs show ./authority/crl.pem            show which certificates are revoked";

/// The subcommands of `towpath certs`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create the authority of a new trust domain.
    #[command(after_help = INIT_EXAMPLES)]
    Init(InitOptions),
    /// Issue a key and a certificate to a host.
    #[command(after_help = ISSUE_EXAMPLES)]
    Issue(IssueOptions),
    /// Issue the next certificate to a host, by this authority or the next one.
    #[command(after_help = lifecycle::RENEW_EXAMPLES)]
    Renew(lifecycle::RenewOptions),
    /// Revoke certificates, and sign the next revocation list.
    #[command(after_help = lifecycle::REVOKE_EXAMPLES)]
    Revoke(lifecycle::RevokeOptions),
    /// List every certificate the authority has issued.
    #[command(after_help = lifecycle::LS_EXAMPLES)]
    Ls(lifecycle::LsOptions),
    /// Show the certificates or revocation lists in a file.
    #[command(after_help = SHOW_EXAMPLES)]
    Show(ShowOptions),
    /// Check a host's folder: certificate, key, authority, chain, validity, revocation.
    #[command(after_help = lifecycle::VERIFY_EXAMPLES)]
    Verify(lifecycle::VerifyOptions),
}

/// The arguments of `towpath certs init`.
#[derive(Debug, Args)]
pub(crate) struct InitOptions {
    /// Folder for the new authority
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// Name of the trust domain, whose hosts it certifies
    #[arg(long, value_name = "NAME")]
    trust_domain: Name,
    #[command(flatten)]
    output: OutputOption,
}

/// The arguments of `towpath certs issue`.
#[derive(Debug, Args)]
pub(crate) struct IssueOptions {
    /// Folder of the authority
    #[arg(long, value_name = "FOLDER")]
    authority: PathBuf,
    /// Site of the host
    #[arg(long, value_name = "NAME")]
    site: Name,
    /// Name of the host within its site
    #[arg(long, value_name = "NAME")]
    host: Name,
    /// Folder for the key and the certificates
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Validity of the certificate in days, 1 to 825
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=825))]
    days: u32,
    #[command(flatten)]
    output: OutputOption,
}

/// The arguments of `towpath certs show`.
#[derive(Debug, Args)]
pub(crate) struct ShowOptions {
    /// PEM file with certificates or revocation lists, all of which are shown
    file: PathBuf,
    #[command(flatten)]
    output: OutputOption,
}

impl Command {
    pub(crate) const fn format(&self) -> Format {
        match self {
            Self::Init(options) => options.output.format,
            Self::Issue(options) => options.output.format,
            Self::Renew(options) => options.output.format,
            Self::Revoke(options) => options.output.format,
            Self::Ls(options) => options.output.format,
            Self::Show(options) => options.output.format,
            Self::Verify(options) => options.output.format,
        }
    }
}

/// A new authority.
#[derive(Debug, Serialize)]
struct Created<'a> {
    folder: &'a Path,
    trust_domain: &'a Name,
}

/// A new certificate and its files.
#[derive(Debug, Serialize)]
struct Issued<'a> {
    identity: String,
    serial: String,
    not_after: String,
    cert: &'a Path,
    key: &'a Path,
    ca: &'a Path,
    crl: Option<&'a Path>,
    /// Names of the files to carry to the host, if it has the others already.
    carry: Option<&'a [&'static str]>,
}

/// Runs a subcommand.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Init(options) => init(&options),
        Command::Issue(options) => issue(&options),
        Command::Renew(options) => lifecycle::renew(&options),
        Command::Revoke(options) => lifecycle::revoke(&options),
        Command::Ls(options) => lifecycle::ls(&options),
        Command::Verify(options) => lifecycle::verify(&options),
        Command::Show(options) => show_file(&options),
    }
}

/// The certificates of a file: the fields of the first one, and the whole chain.
#[derive(Debug, Serialize)]
struct Chain<'a> {
    #[serde(flatten)]
    first: &'a CertificateView,
    chain: &'a [CertificateView],
}

/// The revocation lists of a file.
#[derive(Debug, Serialize)]
struct Lists {
    lists: Vec<WholeListView>,
}

fn show_file(options: &ShowOptions) -> Result<(), Failure> {
    let format = options.output.format;
    let unreadable = |fault| {
        let remedy = "name a file that holds certificates in PEM, such as cert.pem or ca.pem, or lists of revoked \
                      ones, such as crl.pem";
        Failure::from(fault).remedy_of(Code::Certificate, remedy)
    };
    if let Some(lists) = revocation::show(&options.file).map_err(unreadable)? {
        let lists = Lists { lists };
        return show::show(format, "revocation-lists", &lists, || {
            parts(lists.lists.iter().map(list_fields))
        });
    }
    let chain = show_chain(&options.file).map_err(unreadable)?;
    let [first, ..] = &*chain else {
        unreachable!("a file without a certificate is refused");
    };
    let views = Chain {
        first,
        chain: &chain,
    };
    show::show(format, "certificate", &views, || {
        parts(chain.iter().map(table))
    })
}

/// Joins parts with an empty line between them.
fn parts(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join("\n")
}

fn list_fields(view: &WholeListView) -> String {
    let (list, revoked) = (&view.list, &view.revoked);
    let mut rows = vec![
        ("issuer", Some(escape(&list.issuer))),
        ("number", Some(list.number.to_string())),
        ("signed", Some(escape(&list.this_update))),
        ("next one due", Some(escape(&list.next_update))),
        ("revokes", Some(list.revoked_count.to_string())),
    ];
    rows.extend(revoked.iter().map(|one| ("revoked", Some(one.clone()))));
    fields(&rows)
}

fn init(options: &InitOptions) -> Result<(), Failure> {
    Authority::init(&options.dir, &options.trust_domain).map_err(|fault| {
        let remedy = "use the authority that is there, or name another folder with --dir";
        Failure::from(fault).remedy_of(Code::State, remedy)
    })?;
    let created = Created {
        folder: &options.dir,
        trust_domain: &options.trust_domain,
    };
    show::show(options.output.format, "authority", &created, || {
        let folder = escape(&options.dir.display().to_string());
        format!(
            "created the authority of {} in {folder}\n\
             next: towpath certs issue --authority {folder} --site SITE --host HOST --out FOLDER\n",
            options.trust_domain
        )
    })
}

fn issue(options: &IssueOptions) -> Result<(), Failure> {
    let authority = Authority::open(&options.authority)?;
    let identity = HostIdentity {
        trust_domain: authority.trust_domain().clone(),
        site: options.site.clone(),
        host: options.host.clone(),
    };
    let issued = authority.issue(&identity, days_from_now(options.days), &options.out);
    let files = issued.map_err(|fault| {
        let remedy =
            "name another folder with --out, or renew what is there with `towpath certs renew`";
        Failure::from(fault).remedy_of(Code::State, remedy)
    })?;
    show_issued(options.output.format, &files, None)
}

/// The validity of so many days from now on.
fn days_from_now(days: u32) -> Validity {
    let lasting = Duration::from_hours(24 * u64::from(days));
    Validity::lasting(lasting, SystemTime::now())
}

/// Opens the authority that hosts trust as well while one authority replaces the other.
fn overlap_of(folder: Option<&Path>) -> Result<Option<OtherAuthority>, Failure> {
    let opened = folder.map(OtherAuthority::open).transpose()?;
    Ok(opened)
}

/// Shows the files issued to a host.
fn show_issued(
    format: Format,
    files: &IdentityFiles,
    carry: Option<&[&'static str]>,
) -> Result<(), Failure> {
    let view = read_certificate(&files.cert)?;
    let issued = Issued {
        identity: view.uri.clone().unwrap_or_default(),
        serial: view.serial.clone(),
        not_after: view.not_after.clone(),
        cert: &files.cert,
        key: &files.key,
        ca: &files.ca,
        crl: files.crl.as_deref(),
        carry,
    };
    let to_be_carried = carry.map(|changed| {
        let changed = changed.join(", ");
        format!("{changed} to the host; the rest is as it was")
    });
    show::show(format, "issued", &issued, || {
        let path = |path: &Path| Some(escape(&path.display().to_string()));
        fields(&[
            ("identity", Some(escape(&issued.identity))),
            ("certificate", path(&files.cert)),
            ("key", path(&files.key)),
            ("authority", path(&files.ca)),
            ("revocations", files.crl.as_deref().and_then(path)),
            ("serial", Some(escape(&issued.serial))),
            ("good until", Some(escape(&issued.not_after))),
            ("to be carried", to_be_carried),
        ])
    })
}

fn table(view: &CertificateView) -> String {
    let identity = view.identity.as_ref();
    fields(&[
        ("identity", view.uri.as_deref().map(escape)),
        ("site", identity.map(|identity| identity.site.to_string())),
        ("host", identity.map(|identity| identity.host.to_string())),
        ("authority", view.is_authority.then(|| "yes".to_owned())),
        ("issuer", Some(escape(&view.issuer))),
        ("serial", Some(escape(&view.serial))),
        ("good from", Some(escape(&view.not_before))),
        ("good until", Some(escape(&view.not_after))),
        ("usages", Some(escape(&view.usages.join(", ")))),
    ])
}
