//! Reads a trace of a link: rows of a time and the bits per second then, as hours or as seconds.

use jiff::Timestamp;
use towpath_bench::weeks::WEEK_HOURS;

use super::long::Series;

/// Largest file that is read, in bytes: a year of seconds, with room to spare.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 30;

/// Least weeks of a trace: two for training, one that is scored, and a week of lead after it.
const WEEKS_MIN: usize = 4;

/// Most weeks of a trace: ten years.
const WEEKS_MAX: usize = 522;

/// Least samples of a trace of seconds, enough to train and score; and most, a week.
const SAMPLES_MIN: usize = 120;
const SAMPLES_MAX: usize = 7 * 86_400;

/// 1970 began on a Thursday.
const THURSDAY_HOURS: u64 = 3 * 24;

/// The means of the hours of a trace, in UTC.
///
/// The first row may name the columns. Times are seconds since 1970 or like `2026-06-01T00:00:00Z`,
/// in any order; further columns are ignored. Hours without a row are unknown.
pub(crate) fn hours(text: &str) -> Result<Series, String> {
    let rows: Vec<(u64, f64)> = rows(text)?
        .into_iter()
        .map(|(seconds, rate)| (whole(seconds / 3600.0), rate))
        .collect();
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

/// The samples of a trace of seconds, in bytes per second. Each is a mean over a whole number of
/// seconds: the median distance between its rows.
///
/// Rows and times are as in [`hours`]. A row reports what arrived since the one before it, so a
/// sample without a row gets the rate of the next row.
pub(crate) fn samples(text: &str) -> Result<Vec<f64>, String> {
    let mut rows = rows(text)?;
    rows.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return Err("there are no rows".to_owned());
    };
    let mut gaps: Vec<f64> = rows.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    gaps.sort_by(f64::total_cmp);
    let step = gaps
        .get(gaps.len() / 2)
        .map_or(1.0, |gap| gap.round().max(1.0));
    let place = |at: f64| usize::try_from(whole((at - first.0) / step)).unwrap_or(usize::MAX);
    let count = place(last.0);
    if !(SAMPLES_MIN..=SAMPLES_MAX).contains(&count) {
        return Err(format!(
            "{count} samples, not {SAMPLES_MIN} to {SAMPLES_MAX}"
        ));
    }
    if rows.iter().all(|(_, rate)| *rate == 0.0) {
        return Err("nothing was carried".to_owned());
    }
    let mut means = vec![None; count + 1];
    for same in rows.chunk_by(|(a, _), (b, _)| place(*a) == place(*b)) {
        let rates: Vec<f64> = same.iter().map(|(_, rate)| *rate).collect();
        means[place(same[0].0)] = Some(super::mean(&rates));
    }
    let mut next = last.1;
    for mean in means.iter_mut().rev() {
        next = *mean.get_or_insert(next);
    }
    Ok(means.into_iter().flatten().collect())
}

/// Weeks of a series for training, and those that are scored: half each, at most eight for
/// training.
pub(crate) fn weeks(series: &Series) -> (usize, usize) {
    /// The same as on seeded weeks.
    const TAUGHT_MAX: usize = super::TAUGHT_WEEKS;
    let weeks = series.hours.len() / WEEK_HOURS;
    let taught = (weeks / 2).min(TAUGHT_MAX);
    (taught, weeks - taught - 1)
}

/// The time in seconds since 1970 and the bytes per second of each row.
fn rows(text: &str) -> Result<Vec<(f64, f64)>, String> {
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let shown: String = line.chars().take(60).collect();
        match row(line) {
            Some(row) => rows.push(row),
            None if index == 0 || line.trim().is_empty() => {}
            None => return Err(format!("line {}: {shown:?} is no row", index + 1)),
        }
    }
    Ok(rows)
}

fn row(line: &str) -> Option<(f64, f64)> {
    let mut columns = line.split(',').map(str::trim);
    let (time, bits) = (columns.next()?, columns.next()?);
    let seconds = match time.parse::<f64>() {
        Ok(seconds) => seconds,
        Err(_) => time.parse::<Timestamp>().ok()?.as_second() as f64,
    };
    let bits: f64 = bits.parse().ok()?;
    // Up to the year 9999, and to a thousand times the fastest link.
    let is_row = (0.0..2.5e11).contains(&seconds) && (0.0..1e15).contains(&bits);
    is_row.then_some((seconds, bits / 8.0))
}

/// The integer part of a checked value.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times of rows are within a range that was looked at"
)]
const fn whole(value: f64) -> u64 {
    value as u64
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
    fn samples_are_means_of_their_rows_and_gaps_are_filled_by_the_row_that_ends_them() {
        let text: String = (0..200)
            .map(|second| match second {
                4 => "1004.25,8000\n1004.75,16000\n".to_owned(),
                7 | 8 => String::new(),
                9 => "1009.0,24000\n".to_owned(),
                _ => format!("{},80\n", 1000 + second),
            })
            .collect();
        let rates = samples(&text).expect("a trace");
        assert_eq!(rates.len(), 200);
        let expected = [10.0, 1500.0, 10.0, 10.0, 3000.0, 3000.0, 3000.0, 10.0];
        assert_eq!(rates[3..11], expected);
        let slow: String = (0..200).map(|row| format!("{},80\n", 5 * row)).collect();
        assert_eq!(samples(&slow), Ok(vec![10.0; 200]));
        let wrong = |text: &str| samples(text).expect_err("it is refused");
        assert!(wrong("0,1\n1,1").contains("1 samples, not"));
        assert!(wrong("0,1\n1,x").contains("line 2"));
        assert!(wrong("").contains("no rows"));
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
