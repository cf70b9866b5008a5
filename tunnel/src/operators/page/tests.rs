//! The page with made-up links: its content, its escaping, and its size.

use std::time::SystemTime;

use towpath_certs::Rejection;
use towpath_forecast::band::Band;

use super::*;
use crate::operators::health::{self, Signs, Whose};
use crate::operators::last_hour::Point;
use crate::operators::status::{
    ChannelOrigin, ClassView, ForecastView, QuantilesView, RevocationListView, ServiceView,
};
use crate::trust::failures::{Refused, remedy};

const NOW: u64 = 1_800_000_000;

fn link(peer: &str, state: LinkState) -> LinkView {
    let class = |name: &str| ClassView {
        class: name.to_owned(),
        sent_bytes: 5 << 30,
        received_bytes: 0,
        out_bits_per_second: 0,
        in_bits_per_second: 0,
        weight: (name == "bulk").then_some(3),
        floor_bits_per_second: (name == "bulk").then_some(5_000_000),
        cap_bits_per_second: (name == "bulk").then_some(80_000_000),
        datagrams_dropped: 0,
        wait_us: 0,
    };
    LinkView {
        peer: peer.to_owned(),
        host: Some("box-1".to_owned()),
        state,
        reason: "all is well".to_owned(),
        remedy: (state != LinkState::Healthy).then(|| "look at the cable".to_owned()),
        since_unix_seconds: NOW - 7300,
        rtt_us: 40_250,
        base_rtt_us: 40_000,
        queue_us: 0,
        path_bits_per_second: 95_000_000,
        goodput_out_bits_per_second: 12_500_000,
        goodput_in_bits_per_second: 900,
        cap_bits_per_second: None,
        receive_cap_bits_per_second: None,
        cap_changes_unix_seconds: None,
        forecasts: Vec::new(),
        lost_per_million: 0,
        streams: 3,
        streams_paused: 0,
        streams_resumed: 0,
        streams_lost: 0,
        resent_bytes: 0,
        links_lost: 0,
        classes: ["control", "demand", "app", "switch", "bulk", "scavenger"]
            .map(class)
            .into(),
        legs: Vec::new(),
        peer_certificate_not_after_unix_seconds: Some(NOW + 3600),
        key_exchange: None,
        key_exchange_is_hybrid: None,
        cipher_suite: None,
    }
}

fn status(links: Vec<LinkView>) -> StatusView {
    StatusView {
        schema: status::SCHEMA.to_owned(),
        site: "edge".to_owned(),
        host: "box-1".to_owned(),
        version: "0.1.0".to_owned(),
        uptime_seconds: 59,
        links,
        services: vec![ServiceView {
            name: "migrator".to_owned(),
            socket: "/run/towpath/migrator.sock".to_owned(),
            allow: vec!["region".to_owned()],
            streams: 0,
            sent_bytes: 1,
            received_bytes: 2,
            cap_bits_per_second: None,
        }],
        channels: Vec::new(),
        channels_closed_by_hand: Vec::new(),
        refused: None,
        configuration: ConfigurationView::default(),
        state_problem: None,
        certificate: CertificateStatusView {
            uri: "spiffe://shop.example/site/edge/host/box-1".to_owned(),
            not_after: String::new(),
            not_after_unix_seconds: NOW + 86_400 * 60,
            serial: String::new(),
            authorities: vec!["CN=towpath".to_owned()],
            since_unix_seconds: NOW,
            problem: None,
            revocation_lists: vec![RevocationListView {
                issuer: "CN=towpath".to_owned(),
                number: 7,
                next_update: String::new(),
                next_update_unix_seconds: NOW - 1,
                revoked_count: 2,
                state: "stale".to_owned(),
            }],
        },
    }
}

fn full_chart() -> Chart {
    Chart {
        recent: (0..180)
            .map(|count| Point {
                sent_per_second: count * 100_000,
                received_per_second: count * 1000,
            })
            .collect(),
        ahead: (0..=24)
            .map(|hour| (hour, Band::new(1e6, 2e6, 3e6)))
            .collect(),
        caps: (0..24).map(|hour| (hour * 3600, Some(2.5e6))).collect(),
    }
}

fn page_of(links: Vec<LinkView>) -> String {
    let charts: Vec<_> = links.iter().map(|_| full_chart()).collect();
    page(&status(links), &charts, Moment::from_unix_seconds(NOW))
}

#[test]
fn the_page_says_what_each_class_gets() {
    let html = page_of(vec![link("region", LinkState::Healthy)]);
    assert!(
        html.contains("<td>weight 3, from 5.0 Mbit/s, to 80.0 Mbit/s</td>"),
        "{html}"
    );
    assert!(html.contains("<td>first</td>"));
}

#[test]
fn the_page_says_how_links_are_and_what_to_do() {
    let html = page_of(vec![
        link("region", LinkState::Healthy),
        link("depot", LinkState::Down),
    ]);
    for told in [
        "<title>edge: 1 of 2 links healthy</title>",
        "\u{25cf} healthy",
        "\u{2715} down",
        "<p class=\"todo\">look at the cable</p>",
        "12.5 Mbit/s",
        "896 bit/s",
        "40.2 ms",
        "5.0 GiB",
        "<strong>in 60 min</strong>",
        "<strong>ended ",
        "in 60 days",
    ] {
        assert!(html.contains(told), "{told} is missing in {html}");
    }
    assert_eq!(html.matches("look at the cable").count(), 1);
    assert!(!html.contains("<script"), "no script");
}

#[test]
fn how_far_a_forecast_reaches_is_said_beside_it() {
    let view = |direction: &str, horizon: &str, confidence: &str| ForecastView {
        direction: direction.to_owned(),
        horizon: horizon.to_owned(),
        at_unix_seconds: NOW,
        quantiles: Some(QuantilesView {
            p10_bits_per_second: 1,
            p50_bits_per_second: 2,
            p90_bits_per_second: 3,
            confidence: confidence.to_owned(),
            age_seconds: 0,
        }),
        cap_bits_per_second: None,
    };
    let mut told = link("region", LinkState::Healthy);
    assert_eq!(foretold(&told), "nothing known yet");
    told.forecasts = vec![view("receive", "24h", "high")];
    assert_eq!(
        foretold(&told),
        "nothing known yet",
        "what is drawn is sent"
    );
    told.forecasts.push(view("send", "1m", "medium"));
    assert_eq!(
        foretold(&told),
        "of the next minute only, medium confidence"
    );
    told.forecasts.push(view("send", "24h", "low"));
    assert_eq!(foretold(&told), "low confidence");
}

#[test]
fn a_moment_may_be_broken_where_the_column_is_narrow() {
    let html = page_of(vec![link("region", LinkState::Healthy)]);
    assert!(html.contains("<time>"), "{html}");
    let rules = STYLE.split('}').filter(|rule| rule.contains("time"));
    assert!(rules.into_iter().all(|rule| !rule.contains("nowrap")));
}

#[test]
fn l05_words_from_elsewhere_stay_words() {
    let mut bad = link("region", LinkState::Degraded);
    bad.reason = "<script>alert('x')</script>\u{7}".to_owned();
    bad.host = Some("\"><img src=x>".to_owned());
    bad.remedy = Some("a\u{202e}b\u{200b}c".to_owned());
    let html = page_of(vec![bad]);
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; "));
    assert!(html.contains("&quot;&gt;&lt;img src=x&gt;"));
    assert!(!html.contains("<script") && !html.contains("<img"));
    // No direction override is left to turn the text beside it.
    assert!(html.contains("<p class=\"todo\">a b c</p>"), "{html}");
}

fn channel(name: &str, state: ChannelState, reason: &str) -> ChannelView {
    ChannelView {
        name: name.to_owned(),
        listen: "tcp:127.0.0.1:7001".to_owned(),
        peer: "region".to_owned(),
        service: "till".to_owned(),
        class: "app".to_owned(),
        generation: 1,
        expires_unix_seconds: None,
        origin: ChannelOrigin::Configured,
        state,
        reason: reason.to_owned(),
        connections: 0,
        connections_total: 3,
        errors: 41,
        last_error: None,
        open_us: 0,
        rtt_us: 0,
        sent_bytes: 0,
        received_bytes: 0,
        out_bits_per_second: 0,
        in_bits_per_second: 0,
        cap_bits_per_second: None,
        datagrams_dropped: 0,
    }
}

#[test]
fn the_page_says_what_of_the_configuration_is_not_in_use() {
    let mut all = status(vec![link("region", LinkState::Healthy)]);
    let shown = |all: &StatusView| page(all, &[], Moment::from_unix_seconds(NOW));
    assert!(!shown(&all).contains("<h2>Configuration</h2>"));
    all.configuration.problem = Some("E_CONFIG: line 3".to_owned());
    all.configuration.waiting_keys = vec!["limits".to_owned(), "listen".to_owned()];
    all.state_problem = Some("E_IO: no space".to_owned());
    all.certificate.revocation_lists.clear();
    let html = shown(&all);
    for told in [
        "the file as it is now is not in use: E_CONFIG: line 3",
        "will not know what changed: E_IO: no space",
        "used from the next start on: limits, listen",
        "none: revoked hosts are let in",
    ] {
        assert!(html.contains(told), "{told} not in {html}");
    }
}

#[test]
fn the_page_says_which_channels_fail_and_why() {
    let mut all = status(vec![link("region", LinkState::Healthy)]);
    all.channels = vec![channel(
        "shop",
        ChannelState::Failing,
        "E_DENIED: not for us",
    )];
    all.channels_closed_by_hand = vec!["dns".to_owned()];
    all.refused = Some(RefusedView {
        reason: "unknown_authority".to_owned(),
        detail: "UnknownIssuer".to_owned(),
        from: "192.0.2.7:4790".to_owned(),
        at_unix_seconds: NOW - 5,
        remedy: "compare them".to_owned(),
    });
    let html = page(&all, &[full_chart()], Moment::from_unix_seconds(NOW));
    for told in [
        "<td>shop</td><td data-label=\"listens at\">tcp:127.0.0.1:7001</td>",
        "<td data-label=\"leads to\">till at region</td>",
        "\u{25b2} failing: E_DENIED: not for us</span></td>",
        "<td data-label=\"errors\">41</td>",
        "dns is configured and was closed by hand: towpath channel reset dns opens it again",
        "unknown_authority, last from 192.0.2.7:4790 5 s ago",
        "if a peer is there: compare them",
    ] {
        assert!(html.contains(told), "{told} is missing in {html}");
    }
}

#[test]
fn lists_are_called_out_when_the_log_begins_to() {
    let told = |seconds| {
        let mut all = status(Vec::new());
        let list = &mut all.certificate.revocation_lists[0];
        list.next_update_unix_seconds = NOW + seconds;
        page(&all, &[], Moment::from_unix_seconds(NOW)).contains("ends <strong>")
    };
    assert!(told(AGING_TIME.as_secs() - 1) && !told(AGING_TIME.as_secs() + 1));
}

/// A host whose texts are all as long as possible, made of the letter that takes most room.
fn hostile(links: Vec<LinkView>, letter: &str) -> StatusView {
    let (word, words) = (letter.repeat(300), letter.repeat(5000));
    let mut all = status(links);
    all.site = word.clone();
    all.host = word.clone();
    all.version = word.clone();
    for each in &mut all.links {
        each.peer = word.clone();
        each.host = Some(word.clone());
        each.reason = words.clone();
        each.remedy = Some(words.clone());
        each.key_exchange = Some(word.clone());
        for class in &mut each.classes {
            class.class = word.clone();
        }
    }
    all.services[0].socket = word.clone();
    all.services[0].allow = vec![word.clone(); 300];
    all.services[0].name = "n".repeat(63);
    all.services = vec![all.services[0].clone(); 300];
    all.channels = vec![channel(&word, ChannelState::Failing, &words); 300];
    all.channels_closed_by_hand = vec![word.clone(); 300];
    all.certificate.uri = word.clone();
    all.certificate.authorities = vec![word.clone(); 300];
    all.certificate.problem = Some(words.clone());
    let list = all.certificate.revocation_lists[0].clone();
    all.certificate.revocation_lists = vec![list; 300];
    all.configuration.problem = Some(words.clone());
    all.configuration.waiting_keys = vec![word.clone(); 300];
    all.state_problem = Some(words.clone());
    all.refused = Some(RefusedView {
        reason: word.clone(),
        detail: words.clone(),
        from: word,
        at_unix_seconds: NOW - 5,
        remedy: words,
    });
    all
}

#[test]
fn the_page_keeps_its_size_whatever_there_is_to_tell() {
    for letter in ["n", "&", "'", "\"", "\u{7}", "\u{20ac}", "\u{1f6a2}"] {
        for count in [0, 1, 3, 300] {
            let links = vec![link("region", LinkState::Down); count];
            let all = hostile(links, letter);
            let charts: Vec<_> = all.links.iter().map(|_| full_chart()).collect();
            let html = page(&all, &charts, Moment::from_unix_seconds(NOW));
            assert!(html.len() <= PAGE_BYTES_MAX, "{} bytes", html.len());
            let has_link = html.contains("<svg");
            assert_eq!(has_link, count > 0, "links have room in any case");
            assert!(count < 300 || html.contains("more links: "));
            assert!(html.ends_with("</html>\n"));
        }
    }
}

#[test]
fn what_is_left_out_of_a_list_is_counted() {
    let mut all = status(vec![link("region", LinkState::Healthy)]);
    all.services = vec![all.services[0].clone(); 20];
    all.services[0].allow = (0..18).map(|number| format!("site-{number}")).collect();
    all.channels = vec![channel("shop", ChannelState::Healthy, ""); 21];
    all.channels_closed_by_hand = vec!["dns".to_owned(); 18];
    all.certificate.authorities = vec!["CN=towpath".to_owned(); 19];
    let list = all.certificate.revocation_lists[0].clone();
    all.certificate.revocation_lists = vec![list; 17];
    let html = page(&all, &[full_chart()], Moment::from_unix_seconds(NOW));
    for told in [
        "<p>4 more services: <a href=\"status\">",
        "site-14, site-15 and 2 more</td>",
        "<p>5 more channels: <a href=\"status\">",
        "<p>2 more channels that were closed by hand: <a",
        "<p>3 more authorities: <a",
        "<p>1 more lists of revoked certificates: <a",
    ] {
        assert!(html.contains(told), "{told} is missing in {html}");
    }
}

#[test]
fn what_is_to_be_done_and_why_are_said_whole() {
    let text = |number| format!("{number}: {} `towpath certs issue`", "why ".repeat(150));
    let mut bad = link("region", LinkState::Down);
    bad.reason = text(1);
    bad.remedy = Some(text(2));
    let mut all = status(vec![bad]);
    all.channels = vec![channel("shop", ChannelState::Failing, &text(3))];
    all.certificate.problem = Some(text(4));
    all.configuration.problem = Some(text(5));
    all.refused = Some(RefusedView {
        reason: "unknown_authority".to_owned(),
        detail: text(6),
        from: "192.0.2.7:4790".to_owned(),
        at_unix_seconds: NOW - 5,
        remedy: text(7),
    });
    let html = page(&all, &[full_chart()], Moment::from_unix_seconds(NOW));
    for number in 1..=7 {
        assert!(html.contains(&text(number)), "{number} is cut in {html}");
    }
    let name = "n".repeat(300);
    assert_eq!(escape(&name), format!("{}\u{2026}", &name[..200]));
}

#[test]
fn no_remedy_is_cut() {
    let reasons = Rejection::ALL.into_iter();
    let of_certificates = reasons.flat_map(|reason| {
        let from = "[2001:db8:1234:5678:9abc:def0:1234:5678]:47900".parse();
        let refused = |whose| Refused {
            reason: reason.as_str(),
            detail: String::new(),
            from: from.clone().unwrap(),
            at: SystemTime::UNIX_EPOCH,
            remedy: remedy(whose, reason).to_owned(),
        };
        [Whose::Ours, Whose::Peers].map(|whose| refused(whose).remedy_of_peer())
    });
    let signs = [true, false].into_iter().flat_map(|is_linked| {
        let signs = Signs {
            is_linked,
            ..Signs::default()
        };
        let lost_count = health::FLAPS;
        let revoked = Some(Whose::Peers);
        [
            Signs {
                lost_count,
                ..signs.clone()
            },
            Signs {
                revoked,
                ..signs.clone()
            },
            Signs {
                is_dialled: true,
                ..signs.clone()
            },
            Signs {
                is_unspoken: true,
                ..signs.clone()
            },
            Signs {
                is_stalled: true,
                ..signs.clone()
            },
            Signs {
                lost_per_million: health::LOSS_PER_MILLION,
                ..signs.clone()
            },
            Signs {
                queue: health::QUEUE,
                ..signs
            },
        ]
    });
    let of_links = signs.filter_map(|signs| health::judge(&signs).remedy);
    let of_links = of_links.map(|remedy| remedy.into_owned());
    for told in of_certificates.chain(of_links) {
        assert!(!sentence(&told).ends_with('\u{2026}'), "{told}");
    }
}

#[test]
fn three_busy_links_fit_whole() {
    let html = page_of(vec![link("region", LinkState::Healthy); 3]);
    assert_eq!(html.matches("<svg").count(), 3);
    assert!(html.len() < PAGE_BYTES_MAX / 2, "{} bytes", html.len());
}

#[test]
fn lengths_rates_and_sizes_have_their_units() {
    assert_eq!(
        [span(119), span(120), span(7199)],
        ["119 s", "2 min", "119 min"]
    );
    assert_eq!([span(7200), span(172_800)], ["2 h", "2 days"]);
    assert_eq!(
        [rate(0), rate(992), rate(1000)],
        ["0 bit/s", "992 bit/s", "1.0 kbit/s"]
    );
    assert_eq!(
        [rate(12_400_000), rate(2_500_000_000)],
        ["12.4 Mbit/s", "2.5 Gbit/s"]
    );
    assert_eq!(
        [bytes(1023), bytes(1536), bytes(u64::MAX)],
        ["1023 B", "1.5 KiB", "16777215 TiB"]
    );
}
