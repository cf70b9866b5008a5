//! The chart of one link: the last hour on the left, the coming day on the right. Pure.

use std::fmt::Write as _;

use towpath_daemon::units::bits_per_second;
use towpath_forecast::band::Band;
use towpath_forecast::count::{to_f64, whole};

use crate::operators::last_hour::{POINT_COUNT_MAX, Point};

/// Hours of forecast that are drawn.
pub(super) const HOURS_AHEAD: u64 = 24;

/// Size of the chart in its own units; it is scaled to the width of the page.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 168.0;

/// Left and right edge of the past. Left of it stand the rates, of at most 11 letters, which are
/// larger on a narrow screen.
const PAST: (f64, f64) = (LABEL_GAP + 110.0, 384.0);
/// Left and right edge of the coming day.
const AHEAD: (f64, f64) = (404.0, 712.0);

/// Gap between a rate and the lines.
const LABEL_GAP: f64 = 4.0;

/// Top and bottom of the lines.
const TOP: f64 = 12.0;
const BOTTOM: f64 = 140.0;

/// The data of a link's chart; rates in bytes per second.
#[derive(Debug, Default)]
pub(super) struct Chart {
    /// The last hour, the newest point last.
    pub recent: Vec<Point>,
    /// The forecast, by hours from now, ascending.
    pub ahead: Vec<(u64, Band)>,
    /// The cap from now on: from which second ahead, and how much; `None` for no cap.
    pub caps: Vec<(u64, Option<f64>)>,
}

impl Chart {
    /// Draws the chart; `name` is the peer's name, already escaped.
    pub(super) fn draw(&self, name: &str) -> String {
        let scale = Scale::of(self.highest());
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            self.in_words(name)
        );
        scale.draw(&mut svg);
        self.draw_caps(&scale, &mut svg);
        self.draw_past(&scale, &mut svg);
        self.draw_ahead(&scale, &mut svg);
        svg.push_str("</svg>");
        svg
    }

    /// A text alternative for people who do not see the chart.
    fn in_words(&self, name: &str) -> String {
        let last = self.recent.last().copied().unwrap_or_default();
        let (sent, received) = (
            to_f64(last.sent_per_second),
            to_f64(last.received_per_second),
        );
        let now = format!(
            "{name}: now {} out, {} in",
            rate_of(sent),
            rate_of(received)
        );
        match self.ahead.last() {
            Some((hours, band)) => format!(
                "{now}; in {hours} hours {} to {} are expected",
                rate_of(band.p10),
                rate_of(band.p90)
            ),
            None => format!("{now}; nothing is known of the coming day"),
        }
    }

    fn highest(&self) -> f64 {
        let past = self.recent.iter();
        let past = past.map(|point| to_f64(point.sent_per_second.max(point.received_per_second)));
        let ahead = self.ahead.iter().map(|(_, band)| band.p90);
        let caps = self.caps.iter().filter_map(|(_, cap)| *cap);
        past.chain(ahead).chain(caps).fold(0.0, f64::max)
    }

    fn draw_past(&self, scale: &Scale, svg: &mut String) {
        let step = (PAST.1 - PAST.0) / to_f64(POINT_COUNT_MAX as u64 - 1);
        let missing = POINT_COUNT_MAX - self.recent.len().min(POINT_COUNT_MAX);
        let x = |index: usize| PAST.0 + step * to_f64((missing + index) as u64);
        let line = |of: fn(&Point) -> u64| {
            let points = self.recent.iter().enumerate();
            points
                .map(|(index, point)| (x(index), scale.y(to_f64(of(point)))))
                .collect::<Vec<_>>()
        };
        let sent = line(|point| point.sent_per_second);
        if let (Some(first), Some(last)) = (sent.first(), sent.last()) {
            let mut area = sent.clone();
            area.extend([(last.0, BOTTOM), (first.0, BOTTOM)]);
            shape(svg, "polygon", "out", &area);
            shape(svg, "polyline", "out-line", &sent);
            shape(
                svg,
                "polyline",
                "in-line",
                &line(|point| point.received_per_second),
            );
        }
    }

    fn draw_ahead(&self, scale: &Scale, svg: &mut String) {
        let x = |hours: &u64| ahead_x(hours * 3600);
        let edge = |of: fn(&Band) -> f64| {
            let hours = self.ahead.iter();
            hours.map(move |(hour, band)| (x(hour), scale.y(of(band))))
        };
        if self.ahead.len() < 2 {
            let (x, y) = (f64::midpoint(AHEAD.0, AHEAD.1), f64::midpoint(TOP, BOTTOM));
            text(svg, (x, y), "middle", "no forecast of hours yet");
            return;
        }
        let mut band: Vec<_> = edge(|band| band.p90).collect();
        let mut lower: Vec<_> = edge(|band| band.p10).collect();
        lower.reverse();
        band.extend(lower);
        shape(svg, "polygon", "band", &band);
        shape(
            svg,
            "polyline",
            "median",
            &edge(|band| band.p50).collect::<Vec<_>>(),
        );
    }

    fn draw_caps(&self, scale: &Scale, svg: &mut String) {
        let day = HOURS_AHEAD * 3600;
        for (place, (from, cap)) in self.caps.iter().enumerate() {
            let until = self.caps.get(place + 1).map_or(day, |next| next.0);
            let Some(cap) = cap else { continue };
            let y = scale.y(*cap);
            let begin = if *from == 0 { PAST.1 } else { ahead_x(*from) };
            shape(svg, "polyline", "cap", &[(begin, y), (ahead_x(until), y)]);
        }
    }
}

/// Horizontal position of a moment of the coming day.
fn ahead_x(seconds: u64) -> f64 {
    let share = to_f64(seconds) / to_f64(HOURS_AHEAD * 3600);
    AHEAD.0 + (AHEAD.1 - AHEAD.0) * share.min(1.0)
}

/// Converts rates to heights.
struct Scale {
    top: f64,
}

impl Scale {
    /// A scale whose top is a round number of bits per second, at or above the highest rate.
    fn of(highest: f64) -> Self {
        let bits = (highest * 8.0).max(1000.0);
        let decade = 10_f64.powf(bits.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0];
        let step = steps.into_iter().find(|step| step * decade >= bits);
        Self {
            top: step.unwrap_or(10.0) * decade / 8.0,
        }
    }

    fn y(&self, rate: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * (rate / self.top).clamp(0.0, 1.0)
    }

    /// Draws the lines and labels in the background.
    fn draw(&self, svg: &mut String) {
        for share in [0.0, 0.5, 1.0] {
            let y = self.y(self.top * share);
            shape(svg, "polyline", "grid", &[(PAST.0, y), (AHEAD.1, y)]);
            text(
                svg,
                (PAST.0 - LABEL_GAP, y + 4.0),
                "end",
                &rate_of(self.top * share),
            );
        }
        for (x, anchor, word) in [
            (PAST.0, "start", "an hour ago"),
            (f64::midpoint(PAST.1, AHEAD.0), "middle", "now"),
            (f64::midpoint(AHEAD.0, AHEAD.1), "middle", "in 12 h"),
            (AHEAD.1, "end", "in 24 h"),
        ] {
            text(svg, (x, BOTTOM + 18.0), anchor, word);
        }
    }
}

fn shape(svg: &mut String, element: &str, class: &str, points: &[(f64, f64)]) {
    // Writing to a string cannot fail.
    let _ = write!(svg, "<{element} class=\"{class}\" points=\"");
    for (place, (x, y)) in points.iter().enumerate() {
        let blank = if place == 0 { "" } else { " " };
        let _ = write!(svg, "{blank}{x:.0},{y:.0}");
    }
    svg.push_str("\"/>");
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    let _ = write!(
        svg,
        "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

/// A rate in bytes per second, as text in bits per second.
fn rate_of(bytes_per_second: f64) -> String {
    bits_per_second(whole(bytes_per_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn band(p50: f64) -> Band {
        Band::new(p50 / 2.0, p50, p50 * 2.0)
    }

    #[test]
    fn heights_follow_the_rates_and_stay_inside() {
        let scale = Scale::of(1_000_000.0);
        assert!((scale.top - 1_250_000.0).abs() < 1e-6, "10 Mbit/s");
        assert!((scale.y(0.0) - BOTTOM).abs() < 1e-9);
        assert!((scale.y(625_000.0) - f64::midpoint(TOP, BOTTOM)).abs() < 1e-9);
        assert!((scale.y(f64::MAX) - TOP).abs() < 1e-9);
    }

    #[test]
    fn the_rates_fit_beside_the_picture_on_a_narrow_screen() {
        /// Width of a letter in a rate, in letter heights, in the widest font that browsers bring.
        const LETTER_WIDTH: f64 = 0.58;
        let style = include_str!("style.css");
        let narrow = style.split_once("max-width:34rem").unwrap().1;
        let height = narrow.split_once("svg text{font-size:").unwrap().1;
        let height: f64 = height.split_once("px").unwrap().0.parse().unwrap();
        for decade in 3..13 {
            for step in [1.0, 2.0, 5.0] {
                let scale = Scale::of(step * 10_f64.powi(decade) / 8.0);
                for share in [0.5, 1.0] {
                    let label = rate_of(scale.top * share);
                    let width = to_f64(label.len() as u64) * LETTER_WIDTH * height;
                    assert!(width <= PAST.0 - LABEL_GAP, "{label}: {width}");
                }
            }
        }
    }

    #[test]
    fn a_link_nothing_is_known_of_is_drawn_too() {
        let svg = Chart::default().draw("region");
        assert!(svg.contains("no forecast of hours yet"), "{svg}");
        assert!(svg.contains("nothing is known of the coming day"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn the_past_the_band_and_each_cap_are_drawn() {
        let chart = Chart {
            recent: vec![Point::default(); POINT_COUNT_MAX],
            ahead: (0..=24).map(|hour| (hour, band(1e6))).collect(),
            caps: vec![(0, Some(2e6)), (3600, None), (7200, Some(1e6))],
        };
        let svg = chart.draw("region");
        for class in ["out", "out-line", "in-line", "band", "median"] {
            assert_eq!(
                svg.matches(&format!("class=\"{class}\"")).count(),
                1,
                "{class}"
            );
        }
        assert_eq!(svg.matches("class=\"cap\"").count(), 2);
        assert!(svg.len() < 8 * 1024, "{} bytes", svg.len());
    }
}
