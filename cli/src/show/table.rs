//! Aligned columns of plain text.

use std::io::{IsTerminal, stdout};

use rustix::termios::tcgetwinsize;

/// Characters between two columns.
const GAP: usize = 2;

/// Width in characters that the last column keeps at least: other columns are left out first.
const LAST_CHARS_MIN: usize = 24;

/// Rows under titles. A title that begins with `>` aligns its column to the right.
///
/// On a terminal the table is made to fit the width: the least important columns are left out, and
/// the last column is wrapped. Elsewhere it has all columns.
#[derive(Debug)]
pub(crate) struct Table {
    titles: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
    /// Titles of the columns that may be left out, least important first.
    least: Vec<String>,
}

impl Table {
    pub(crate) fn new<const N: usize>(titles: [&str; N]) -> Self {
        let title = |text: &str| match text.strip_prefix('>') {
            Some(rest) => (rest.to_owned(), true),
            None => (text.to_owned(), false),
        };
        Self {
            titles: titles.into_iter().map(title).collect(),
            rows: Vec::new(),
            least: Vec::new(),
        }
    }

    /// Sets the columns that may be left out on a narrow terminal, least important first.
    pub(crate) fn least<const N: usize>(mut self, titles: [&str; N]) -> Self {
        self.least = titles.map(str::to_owned).into();
        self
    }

    /// A table that has its first row as titles.
    pub(crate) fn of_rows(rows: Vec<Vec<String>>) -> Self {
        let mut rows = rows.into_iter();
        let titles = rows.next().unwrap_or_default();
        Self {
            titles: titles.into_iter().map(|title| (title, false)).collect(),
            rows: rows.collect(),
            least: Vec::new(),
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(cells.len(), self.titles.len());
        self.rows.push(cells.into());
    }

    /// The table, or `empty` if it has no rows.
    pub(crate) fn render(&self, empty: &str) -> String {
        self.render_within(terminal_columns(), empty)
    }

    fn render_within(&self, room: Option<usize>, empty: &str) -> String {
        if self.rows.is_empty() {
            return format!("{empty}\n");
        }
        let titles: Vec<String> = self.titles.iter().map(|title| title.0.clone()).collect();
        let mut widths: Vec<usize> = (0..titles.len())
            .map(|column| {
                let cells = self.rows.iter().chain([&titles]);
                cells.map(|row| width(&row[column])).max().unwrap_or(0)
            })
            .collect();
        let columns = self.fitting(&widths, room);
        if let (Some(room), Some((last, before))) = (room, columns.split_last()) {
            let taken: usize = before.iter().map(|column| widths[*column] + GAP).sum();
            let left = room.saturating_sub(taken).max(LAST_CHARS_MIN);
            widths[*last] = widths[*last].min(left);
        }
        let rows = [&titles].into_iter().chain(&self.rows);
        rows.map(|row| self.lines(row, &columns, &widths)).collect()
    }

    /// Indices of the columns that fit into `room`.
    fn fitting(&self, widths: &[usize], room: Option<usize>) -> Vec<usize> {
        let mut columns: Vec<usize> = (0..widths.len()).collect();
        let needed = |columns: &[usize]| match columns.split_last() {
            Some((last, before)) => {
                let taken: usize = before.iter().map(|column| widths[*column] + GAP).sum();
                taken + widths[*last].min(LAST_CHARS_MIN)
            }
            None => 0,
        };
        for title in &self.least {
            if room.is_none_or(|room| needed(&columns) <= room) {
                break;
            }
            columns.retain(|column| self.titles[*column].0 != *title);
        }
        columns
    }

    /// Formats a row: one line, or more if its last cell is wider than its column.
    fn lines(&self, row: &[String], columns: &[usize], widths: &[usize]) -> String {
        let Some((last, before)) = columns.split_last() else {
            return String::new();
        };
        let mut start = String::new();
        for column in before {
            start.push_str(&self.aligned(*column, &row[*column], widths[*column]));
            start.push_str(&" ".repeat(GAP));
        }
        let indent = " ".repeat(width(&start));
        let mut text = String::new();
        for piece in broken(&row[*last], widths[*last]) {
            let begin = if text.is_empty() { &start } else { &indent };
            let line = format!("{begin}{}", self.aligned(*last, &piece, widths[*last]));
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn aligned(&self, column: usize, cell: &str, wide: usize) -> String {
        let padding = " ".repeat(wide.saturating_sub(width(cell)));
        if self.titles[column].1 {
            padding + cell
        } else {
            cell.to_owned() + &padding
        }
    }
}

/// Width in characters of the terminal on stdout; `None` if stdout is no terminal.
fn terminal_columns() -> Option<usize> {
    let out = stdout();
    let size = out.is_terminal().then(|| tcgetwinsize(&out).ok())??;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Wraps a text between words into lines of at most `room` characters. A longer word is not broken.
fn broken(text: &str, room: usize) -> Vec<String> {
    if width(text) <= room {
        return vec![text.to_owned()];
    }
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if width(line) + 1 + width(word) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Formats a list of fields, one per line. Fields without a value are left out.
pub(crate) fn fields(fields: &[(&str, Option<String>)]) -> String {
    let present = || {
        let with_value =
            |(name, value): &(&str, Option<String>)| Some(((*name).to_owned(), value.clone()?));
        fields.iter().filter_map(with_value)
    };
    let longest = present().map(|(name, _)| width(&name)).max().unwrap_or(0);
    present()
        .map(|(name, value)| format!("{name:longest$}  {value}\n"))
        .collect()
}

/// Width of a text in columns. All printed characters have single width.
fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["NAME", ">MEMORY", "STATE"]);
        table.row(["a".into(), "1 GiB".into(), "running".into()]);
        table.row(["till-17".into(), "256 MiB".into(), "moved".into()]);
        let expected = "\
NAME      MEMORY  STATE
a          1 GiB  running
till-17  256 MiB  moved
";
        assert_eq!(table.render("none"), expected);
        assert_eq!(Table::new(["A"]).render("none"), "none\n");
    }

    #[test]
    fn a_narrow_terminal_has_fewer_columns_and_breaks_the_last_one() {
        let titles = ["LINK", ">RTT", ">LOSS", "WHY"];
        let mut table = Table::new(titles).least(["LOSS", "RTT"]);
        let why = "no link to region: the last one was seen twelve seconds ago";
        table.row([
            "region".into(),
            "40.1 ms".into(),
            "0.0 %".into(),
            why.into(),
        ]);
        let widest = |text: &str| text.lines().map(width).max().unwrap();
        for (room, has_loss, has_rtt) in [(48, true, true), (42, false, true), (34, false, false)] {
            let text = table.render_within(Some(room), "");
            assert!(widest(&text) <= room, "{text}");
            assert_eq!(text.contains("LOSS"), has_loss, "{room}: {text}");
            assert_eq!(text.contains("RTT"), has_rtt, "{room}: {text}");
            let said = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(said.ends_with("seen twelve seconds ago"), "{text}");
        }
        assert_eq!(table.render_within(None, "").lines().count(), 2);
        assert_eq!(table.render_within(Some(200), "").lines().count(), 2);
    }

    #[test]
    fn fields_without_a_value_are_left_out() {
        let text = fields(&[
            ("name", Some("a".into())),
            ("moved to", None),
            ("state", Some("running".into())),
        ]);
        assert_eq!(text, "name   a\nstate  running\n");
    }
}
