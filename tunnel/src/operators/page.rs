//! The status page: one document for people, without a script, readable on a phone.
//!
//! Everything on it comes from `/status`, except the charts, which add the last hour and the coming
//! day.

mod chart;

use std::fmt::Write as _;
use std::time::Duration;

use towpath_certs::revocation::AGING_TIME;
use towpath_daemon::log::is_plain;
use towpath_daemon::units::{bits_per_second, bytes};
use towpath_forecast::moment::Moment;

use crate::core::Core;
use crate::links::peer::Peer;
use crate::measuring::outlook::{Direction, bytes_per_second, cap_at};
use crate::operators::status::{
    self, CertificateStatusView, ChannelState, ChannelView, ClassView, ConfigurationView,
    LinkState, LinkView, RefusedView, StatusView,
};
use crate::shaping::timetable;
use chart::{Chart, HOURS_AHEAD};

/// Most bytes of the page. Links that do not fit are counted and not shown.
pub(crate) const PAGE_BYTES_MAX: usize = 60_000;

/// Most rows shown of a list; `/status` has them all.
const ROWS_MAX: usize = 16;
/// Most bytes of the channels, whose rows are the longest. All lists together take less than half
/// of the page, so that links have room whatever stands behind them.
const CHANNEL_BYTES_MAX: usize = 8 * 1024;
/// Most bytes of any other list.
const LIST_BYTES_MAX: usize = 4 * 1024;

/// Room for the number of links that are not shown.
const MORE_BYTES: usize = 100;

/// The columns of channels and of services.
const CHANNEL_COLUMNS: [&str; 8] = [
    "name",
    "listens at",
    "leads to",
    "state",
    "now",
    "errors",
    "sent",
    "received",
];
const SERVICE_COLUMNS: [&str; 3] = ["name", "at", "for"];

/// Most bytes of a name from a peer or a file.
const WORD_BYTES_MAX: usize = 200;
/// Most bytes of a sentence: a reason, a problem or a remedy, which is of use only if it is whole.
const SENTENCE_BYTES_MAX: usize = 1000;

/// Most changes of the cap that are drawn.
const CAP_CHANGES_MAX: usize = 24;

/// Seconds before its end from which a certificate is marked, as in the alert `TowpathCertExpires`.
const EXPIRY_WARNING_SECONDS: u64 = 14 * 24 * 3600;
/// The same for a revocation list, as in the log and the alert.
const LIST_WARNING_SECONDS: u64 = AGING_TIME.as_secs();

const STYLE: &str = include_str!("page/style.css");

/// Renders the page as of now.
pub(crate) fn render(core: &Core) -> String {
    let status = status::status(core);
    let now = timetable::now();
    let peers = core.peers.all();
    let charts = peers.values().map(|peer| chart(core, peer, now));
    page(&status, &charts.collect::<Vec<_>>(), now)
}

fn chart(core: &Core, peer: &Peer, now: Moment) -> Chart {
    let ahead = |hour: u64| {
        let at = now.plus_seconds(hour * 3600);
        let cap = cap_at(peer, Direction::Send, at).map(bytes_per_second);
        let made = core.outlook.with(&peer.site, Direction::Send, |known| {
            known.forecast_under(now, at, cap)
        });
        made.flatten().map(|made| (hour, made.band))
    };
    Chart {
        recent: peer.recent.points(),
        ahead: (0..=HOURS_AHEAD).filter_map(ahead).collect(),
        caps: caps(peer, now),
    }
}

/// The cap of the coming day, by seconds from now: the one that the forecast keeps to.
fn caps(peer: &Peer, now: Moment) -> Vec<(u64, Option<f64>)> {
    let cap = |at: Moment| cap_at(peer, Direction::Send, at).map(bytes_per_second);
    let mut caps = vec![(0, cap(now))];
    let mut at = now;
    let shaped = peer.shaped();
    let table = shaped.timetable.as_ref();
    while let Some(next) = table.and_then(|table| table.next_change_after(at)) {
        let ahead = next.since(now).as_secs();
        if ahead >= HOURS_AHEAD * 3600 || caps.len() == CAP_CHANGES_MAX {
            break;
        }
        caps.push((ahead, cap(next)));
        at = next;
    }
    caps
}

/// Renders the document. Pure.
fn page(status: &StatusView, charts: &[Chart], now: Moment) -> String {
    let healthy = status
        .links
        .iter()
        .filter(|link| link.state == LinkState::Healthy);
    let (healthy, all) = (healthy.count(), status.links.len());
    let title = format!("{}: {healthy} of {all} links healthy", escape(&status.site));
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"refresh\" content=\"20\"><title>{title}</title>\
         <style>{STYLE}</style></head><body><header><h1>{}/{}</h1>\
         <p>Towpath tunnel {}, up for {}. Read {}; this page reads itself again every 20 s.</p>\
         <p class=\"sum\">{healthy} of {all} links healthy</p></header><main>",
        escape(&status.site),
        escape(&status.host),
        escape(&status.version),
        span(status.uptime_seconds),
        clock(now),
    );
    let rest = behind_links(status, now);
    let room = PAGE_BYTES_MAX.saturating_sub(rest.len() + MORE_BYTES);
    let mut left_out = 0;
    for (place, link) in status.links.iter().enumerate() {
        let nothing = Chart::default();
        let section = link_section(link, charts.get(place).unwrap_or(&nothing), now);
        if html.len() + section.len() > room {
            left_out += 1;
        } else {
            html.push_str(&section);
        }
    }
    more(&mut html, left_out, "links");
    html + &rest
}

/// The sections after the links. Each has a size limit, and so has the whole.
fn behind_links(status: &StatusView, now: Moment) -> String {
    let mut html = String::new();
    channels(&mut html, status);
    services(&mut html, status);
    certificate(&mut html, &status.certificate, now);
    configuration(&mut html, &status.configuration);
    state_folder(&mut html, status.state_problem.as_deref());
    if let Some(refused) = &status.refused {
        html.push_str(&refusal(refused, now));
    }
    html.push_str(
        "</main><footer><a href=\"status\">status as JSON</a> \u{b7} <a href=\"metrics\">metrics</a>\
         </footer></body></html>\n",
    );
    html
}

/// Writes rows while there is room for them; returns how many are left out.
fn list(html: &mut String, bytes_max: usize, rows: impl ExactSizeIterator<Item = String>) -> usize {
    let mut left_out = rows.len();
    let mut room = bytes_max;
    for row in rows.take(ROWS_MAX) {
        let Some(left) = room.checked_sub(row.len()) else {
            break;
        };
        room = left;
        left_out -= 1;
        html.push_str(&row);
    }
    left_out
}

/// Says how many of something are not shown, and where they are.
fn more(html: &mut String, count: usize, what: &str) {
    if count > 0 {
        put(
            html,
            format_args!("<p>{count} more {what}: <a href=\"status\">/status</a>.</p>"),
        );
    }
}

fn link_section(link: &LinkView, chart: &Chart, now: Moment) -> String {
    let name = escape(&link.peer);
    let state = link.state.as_str();
    let mut html = format!(
        "<section><h2>{name} <span class=\"state {state}\">{} {state}</span></h2><p>{}</p>",
        mark(link.state),
        sentence(&link.reason),
    );
    if let Some(remedy) = &link.remedy {
        put(
            &mut html,
            format_args!("<p class=\"todo\">{}</p>", sentence(remedy)),
        );
    }
    html.push_str(&chart.draw(&name));
    html.push_str(
        "<p class=\"key\"><span><i class=\"k-out\"></i>sent</span> <span><i class=\"k-in\"></i>received</span> \
         <span><i class=\"k-band\"></i>expected, 8 chances in 10</span> <span><i class=\"k-cap\"></i>cap</span></p><dl>",
    );
    for (term, told) in facts(link, now) {
        put(
            &mut html,
            format_args!("<div><dt>{term}</dt><dd>{told}</dd></div>"),
        );
    }
    html.push_str(
        "</dl><table><tr><th>class</th><th>sent</th><th>received</th><th>share</th></tr>",
    );
    for class in &link.classes {
        let (sent, received) = (bytes(class.sent_bytes), bytes(class.received_bytes));
        let (name, share) = (escape(&class.class), share(class));
        put(
            &mut html,
            format_args!(
                "<tr><td>{name}</td><td>{sent}</td><td>{received}</td><td>{share}</td></tr>"
            ),
        );
    }
    html.push_str("</table></section>");
    html
}

/// The share of a class in words.
fn share(class: &ClassView) -> String {
    let mut share = match class.weight {
        None => "first".to_owned(),
        Some(0) => "the rest".to_owned(),
        Some(weight) => format!("weight {weight}"),
    };
    for (word, rated) in [
        ("from", class.floor_bits_per_second),
        ("to", class.cap_bits_per_second),
    ] {
        if let Some(rated) = rated {
            put(&mut share, format_args!(", {word} {}", rate(rated)));
        }
    }
    share
}

/// The facts about a link, by term.
fn facts(link: &LinkView, now: Moment) -> Vec<(&'static str, String)> {
    let since = now.unix_seconds().saturating_sub(link.since_unix_seconds);
    let mut facts = vec![
        (
            "host",
            link.host
                .as_deref()
                .map_or_else(|| "none".to_owned(), escape),
        ),
        ("so for", span(since)),
        ("sends", rate(link.goodput_out_bits_per_second)),
        ("receives", rate(link.goodput_in_bits_per_second)),
        (
            "path carries",
            match link.path_bits_per_second {
                0 => "unknown".to_owned(),
                known => rate(known),
            },
        ),
        (
            "cap",
            link.cap_bits_per_second
                .map_or_else(|| "none".to_owned(), rate),
        ),
        ("round trip", millis(link.rtt_us)),
        ("queue", millis(link.queue_us)),
        (
            "lost",
            format!("{} of a million packets", link.lost_per_million),
        ),
        (
            "streams",
            format!(
                "{} open, {} paused, {} lost",
                link.streams, link.streams_paused, link.streams_lost
            ),
        ),
    ];
    facts.push(("forecast", foretold(link)));
    if let Some(exchange) = &link.key_exchange {
        let kind = match link.key_exchange_is_hybrid {
            Some(true) => "hybrid",
            _ => "not hybrid",
        };
        facts.push(("key exchange", format!("{}, {kind}", escape(exchange))));
    }
    if let Some(end) = link.peer_certificate_not_after_unix_seconds {
        facts.push(("its certificate ends", expiry(end, now)));
    }
    facts
}

/// How far ahead the forecast of sending reaches, and its confidence.
fn foretold(link: &LinkView) -> String {
    let known = |horizon: &str| {
        let sent = link.forecasts.iter();
        let mut sent = sent.filter(|each| each.direction == Direction::Send.as_str());
        let found = sent.find(|each| each.horizon == horizon)?;
        found.quantiles.as_ref()
    };
    match (known("24h"), known("1m")) {
        (Some(known), _) => format!("{} confidence", escape(&known.confidence)),
        (None, Some(known)) => format!(
            "of the next minute only, {} confidence",
            escape(&known.confidence)
        ),
        (None, None) => "nothing known yet".to_owned(),
    }
}

fn channels(html: &mut String, status: &StatusView) {
    if status.channels.is_empty() && status.channels_closed_by_hand.is_empty() {
        return;
    }
    html.push_str("<section><h2>Channels</h2><table class=\"list channels\">");
    html.push_str(&list_head(&CHANNEL_COLUMNS));
    let rows = status.channels.iter().map(channel_row);
    let left_out = list(html, CHANNEL_BYTES_MAX, rows);
    html.push_str("</table>");
    more(html, left_out, "channels");
    let rows = status.channels_closed_by_hand.iter().map(|name| {
        let name = escape(name);
        format!(
            "<p class=\"todo\">{name} is configured and was closed by hand: towpath channel reset {name} opens it \
             again</p>"
        )
    });
    let left_out = list(html, LIST_BYTES_MAX, rows);
    more(html, left_out, "channels that were closed by hand");
    html.push_str("</section>");
}

fn channel_row(channel: &ChannelView) -> String {
    let (name, listen) = (escape(&channel.name), escape(&channel.listen));
    let (service, peer) = (escape(&channel.service), escape(&channel.peer));
    let (mark, state) = (channel_mark(channel.state), channel.state.as_str());
    let why = match channel.state {
        ChannelState::Healthy => String::new(),
        _ => format!(": {}", sentence(&channel.reason)),
    };
    list_row(
        &CHANNEL_COLUMNS,
        [
            name,
            listen,
            format!("{service} at {peer}"),
            format!("<span class=\"{state}\">{mark} {state}{why}</span>"),
            format!("{} open", channel.connections),
            channel.errors.to_string(),
            bytes(channel.sent_bytes),
            bytes(channel.received_bytes),
        ],
    )
}

/// The header row of a list, which a narrow page hides.
fn list_head(columns: &[&str]) -> String {
    let columns: String = columns
        .iter()
        .map(|column| format!("<th>{column}</th>"))
        .collect();
    format!("<tr>{columns}</tr>")
}

/// A row of a list. On a narrow page each cell is a line behind its column's name; the first cell
/// is the title and needs no name.
fn list_row<const COUNT: usize>(columns: &[&str; COUNT], cells: [String; COUNT]) -> String {
    let mut row = String::from("<tr>");
    for (place, (column, cell)) in columns.iter().zip(cells).enumerate() {
        let what = match place {
            0 => format_args!("<td>{cell}</td>"),
            _ => format_args!("<td data-label=\"{column}\">{cell}</td>"),
        };
        put(&mut row, what);
    }
    row + "</tr>"
}

fn services(html: &mut String, status: &StatusView) {
    if status.services.is_empty() {
        return;
    }
    html.push_str("<section><h2>Services</h2><table class=\"list\">");
    html.push_str(&list_head(&SERVICE_COLUMNS));
    let rows = status.services.iter().map(|service| {
        let (name, socket) = (escape(&service.name), escape(&service.socket));
        list_row(&SERVICE_COLUMNS, [name, socket, joined(&service.allow)])
    });
    let left_out = list(html, LIST_BYTES_MAX, rows);
    html.push_str("</table>");
    more(html, left_out, "services");
    html.push_str("</section>");
}

/// Names in one line, and how many more there are.
fn joined(names: &[String]) -> String {
    let shown = names.iter().take(ROWS_MAX).map(|name| escape(name));
    let shown = shown.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(ROWS_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn certificate(html: &mut String, certificate: &CertificateStatusView, now: Moment) {
    put(
        html,
        format_args!(
            "<section><h2>Certificate</h2><p>{}</p><dl><div><dt>ends</dt><dd>{}</dd></div>",
            escape(&certificate.uri),
            expiry(certificate.not_after_unix_seconds, now)
        ),
    );
    let rows = certificate.authorities.iter().map(|authority| {
        let authority = escape(authority);
        format!("<div><dt>authority</dt><dd>{authority}</dd></div>")
    });
    let authorities_left_out = list(html, LIST_BYTES_MAX, rows);
    let rows = certificate.revocation_lists.iter().map(|list| {
        let next = end(list.next_update_unix_seconds, now, LIST_WARNING_SECONDS);
        let (number, count) = (list.number, list.revoked_count);
        format!(
            "<div><dt>revocations</dt><dd>list {number}, {count} revoked; ends {next}</dd></div>"
        )
    });
    let lists_left_out = list(html, LIST_BYTES_MAX, rows);
    if certificate.revocation_lists.is_empty() {
        html.push_str("<div><dt>revocations</dt><dd>none: revoked hosts are let in</dd></div>");
    }
    html.push_str("</dl>");
    more(html, authorities_left_out, "authorities");
    more(html, lists_left_out, "lists of revoked certificates");
    if let Some(problem) = &certificate.problem {
        put(
            html,
            format_args!("<p class=\"todo\">problem: {}</p>", sentence(problem)),
        );
    }
    html.push_str("</section>");
}

/// Which parts of the configuration file are not in use, if any.
fn configuration(html: &mut String, view: &ConfigurationView) {
    if *view == ConfigurationView::default() {
        return;
    }
    html.push_str("<section><h2>Configuration</h2>");
    if let Some(problem) = &view.problem {
        put(
            html,
            format_args!(
                "<p class=\"todo\">the file as it is now is not in use: {}</p>",
                sentence(problem)
            ),
        );
    }
    if !view.waiting_keys.is_empty() {
        let keys = joined(&view.waiting_keys);
        put(
            html,
            format_args!("<p>changed in the file, and used from the next start on: {keys}</p>"),
        );
    }
    html.push_str("</section>");
}

/// Why the state folder takes nothing, if so.
fn state_folder(html: &mut String, problem: Option<&str>) {
    if let Some(problem) = problem {
        put(
            html,
            format_args!(
                "<section><h2>State folder</h2><p class=\"todo\">the last write failed, and the next start will not know \
                 what changed: {}</p></section>",
                sentence(problem)
            ),
        );
    }
}

/// The last refused handshake, whoever tried it.
fn refusal(refused: &RefusedView, now: Moment) -> String {
    let ago = span(now.unix_seconds().saturating_sub(refused.at_unix_seconds));
    let (reason, detail) = (escape(&refused.reason), sentence(&refused.detail));
    let (from, remedy) = (escape(&refused.from), sentence(&refused.remedy));
    format!(
        "<section><h2>Handshakes were refused</h2><p>{reason}, last from {from} {ago} ago: {detail}</p>\
         <p class=\"todo\">if a peer is there: {remedy}</p></section>"
    )
}

/// A shape beside the colour, for people who cannot tell red from green.
const fn mark(state: LinkState) -> &'static str {
    match state {
        LinkState::Healthy => "\u{25cf}",
        LinkState::Degraded => "\u{25b2}",
        LinkState::Down => "\u{2715}",
    }
}

const fn channel_mark(state: ChannelState) -> &'static str {
    match state {
        ChannelState::Healthy => mark(LinkState::Healthy),
        ChannelState::Degraded | ChannelState::Failing => mark(LinkState::Degraded),
        ChannelState::Down => mark(LinkState::Down),
    }
}

fn put(html: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = html.write_fmt(what);
}

/// A name from elsewhere, shortened and escaped.
fn escape(word: &str) -> String {
    harmless(word, WORD_BYTES_MAX)
}

/// A sentence from elsewhere, escaped; it may be longer than a name.
fn sentence(words: &str) -> String {
    harmless(words, SENTENCE_BYTES_MAX)
}

/// Escapes a text for the page, cut before it would take more than `bytes_max` bytes there.
fn harmless(text: &str, bytes_max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(bytes_max));
    for letter in text.chars() {
        let mut bytes = [0; 4];
        let written = match letter {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '"' => "&quot;",
            '\'' => "&#39;",
            mark if !is_plain(mark) => " ",
            other => &*other.encode_utf8(&mut bytes),
        };
        if out.len() + written.len() > bytes_max {
            out.push('\u{2026}');
            break;
        }
        out.push_str(written);
    }
    out
}

/// A moment as people write it, in UTC.
pub(crate) fn clock(moment: Moment) -> String {
    let since = Duration::from_secs(moment.unix_seconds());
    let told = jiff::Timestamp::UNIX_EPOCH.checked_add(since);
    told.map_or_else(
        |_| moment.to_string(),
        |told| told.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
    )
}

/// When a certificate ends, marked if that is soon.
fn expiry(end_unix_seconds: u64, now: Moment) -> String {
    end(end_unix_seconds, now, EXPIRY_WARNING_SECONDS)
}

/// When something ends, marked if that is within `warning_seconds`.
fn end(end_unix_seconds: u64, now: Moment, warning_seconds: u64) -> String {
    let end = clock(Moment::from_unix_seconds(end_unix_seconds));
    let end = format!("<time>{end}</time>");
    let left = end_unix_seconds.saturating_sub(now.unix_seconds());
    match left {
        0 => format!("<strong>ended {end}</strong>"),
        soon if soon < warning_seconds => {
            format!("<strong>in {}</strong>, {end}", span(soon))
        }
        _ => format!("in {}, {end}", span(left)),
    }
}

/// A duration in its largest whole unit.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn millis(micros: u64) -> String {
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}

fn rate(bits: u64) -> String {
    bits_per_second(bits / 8)
}

#[cfg(test)]
mod tests;
