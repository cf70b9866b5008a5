//! A trace of a link from a file: rows of a time and the bits per second then.

use jiff::Timestamp;
use towpath_bench::weeks::WEEK_HOURS;

use super::long::Series;

/// Largest file that is read, in bytes: a year of seconds with room.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 30;

/// Weeks a trace has to have: two that teach, one that is scored, and the week ahead of its end.
const WEEKS_MIN: usize = 4;

/// Weeks a trace may have: ten years.
const WEEKS_MAX: usize = 522;

/// 1970 began on a Thursday.
const THURSDAY_HOURS: u64 = 3 * 24;

/// Means of the hours of a trace, by UTC.
///
/// The first row may name the columns. Times are seconds since 1970 or as in `2026-06-01T00:00:00Z`,
/// in any order; further columns are left alone. Hours without a row are not known.
pub(crate) fn hours(text: &str) -> Result<Series, String> {
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let shown: String = line.chars().take(60).collect();
        match row(line) {
            Some(row) => rows.push(row),
            None if index == 0 || line.trim().is_empty() => {}
            None => return Err(format!("line {}: {shown:?} is no row", index + 1)),
        }
    }
    let first = rows.iter().map(|(hour, _)| *hour).min();
    let last = rows.iter().map(|(hour, _)| *hour).max();
    let (Some(first), Some(last)) = (first, last) else {
        return Err("there are no rows".to_owned());
    };
    let count = usize::try_from(last - first).unwrap_or(usize::MAX);
    let weeks = count / WEEK_HOURS;
    if !(WEEKS_MIN..=WEEKS_MAX).contains(&weeks) {
        return Err(format!(
            "{weeks} whole weeks, not {WEEKS_MIN} to {WEEKS_MAX}"
        ));
    }
    let mut sums = vec![(0.0, 0.0); count + 1];
    for (hour, rate) in rows {
        let place = usize::try_from(hour - first).expect("within the weeks counted");
        sums[place].0 += rate;
        sums[place].1 += 1.0;
    }
    let mean = |(sum, count): (f64, f64)| (count > 0.0).then(|| sum / count);
    let week_hour = (first + THURSDAY_HOURS) % 168;
    Ok(Series {
        hours: sums.into_iter().map(mean).collect(),
        first: usize::try_from(week_hour).expect("an hour of the week"),
    })
}

/// Weeks of a series that teach, and those that are scored: half each, eight taught at most.
pub(crate) fn weeks(series: &Series) -> (usize, usize) {
    /// As many as on the weeks made from seeds.
    const TAUGHT_MAX: usize = super::TAUGHT_WEEKS;
    let weeks = series.hours.len() / WEEK_HOURS;
    let taught = (weeks / 2).min(TAUGHT_MAX);
    (taught, weeks - taught - 1)
}

/// The hour since 1970 and the bytes per second of a row.
fn row(line: &str) -> Option<(u64, f64)> {
    let mut columns = line.split(',').map(str::trim);
    let (time, bits) = (columns.next()?, columns.next()?);
    let seconds = match time.parse::<f64>() {
        Ok(seconds) => seconds,
        Err(_) => time.parse::<Timestamp>().ok()?.as_second() as f64,
    };
    let bits: f64 = bits.parse().ok()?;
    // Up to the year 9999, and a thousand times the fastest link.
    let is_row = (0.0..2.5e11).contains(&seconds) && (0.0..1e15).contains(&bits);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within the range just looked at"
    )]
    let hour = (seconds / 3600.0) as u64;
    is_row.then_some((hour, bits / 8.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four weeks and an hour from Monday, 1 June 2026.
    fn text(row: impl Fn(u64) -> String) -> String {
        let rows = (0..=4 * 168).map(|hour| row(1_780_272_000 + hour * 3600));
        rows.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn hours_are_means_of_their_rows_and_gaps_are_not_known() {
        let rows = text(|at| {
            if at == 1_780_272_000 + 7200 {
                return String::new();
            }
            format!("{at},8000\n{}.5,16000,more", at + 1800)
        });
        let series = hours(&format!("time,bits\n{rows}")).expect("a trace");
        assert_eq!(series.first, 0);
        assert_eq!(series.hours.len(), 4 * 168 + 1);
        assert_eq!(series.hours[..3], [Some(1500.0), Some(1500.0), None]);
        assert_eq!(weeks(&series), (2, 1));
    }

    #[test]
    fn times_may_be_dates() {
        let rows = text(|at| {
            let at = Timestamp::from_second(i64::try_from(at).expect("small")).expect("a date");
            format!("{at},8000")
        });
        let series = hours(&rows).expect("a trace");
        assert!(series.hours.iter().all(|hour| *hour == Some(1000.0)));
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        let wrong = |text: &str| hours(text).err().expect("it is refused");
        assert!(wrong("time,bits").contains("no rows"));
        assert!(wrong("0,1\n0,-1").contains("line 2"));
        assert!(wrong("0,1\nnan,1").contains("line 2"));
        assert!(wrong("0,1\n1,2").contains("0 whole weeks"));
        assert!(wrong("0,1\n200000000000,2").contains("not 4 to 522"));
    }
}
