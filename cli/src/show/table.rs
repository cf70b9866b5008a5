//! Aligned columns of plain text.

/// Rows under titles; a title that begins with `>` makes its column end at the right.
#[derive(Debug)]
pub(crate) struct Table {
    titles: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
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
        }
    }

    /// A table without titles of its own: the first row stands in for them.
    pub(crate) fn of_rows(rows: Vec<Vec<String>>) -> Self {
        let mut rows = rows.into_iter();
        let titles = rows.next().unwrap_or_default();
        Self {
            titles: titles.into_iter().map(|title| (title, false)).collect(),
            rows: rows.collect(),
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(cells.len(), self.titles.len());
        self.rows.push(cells.into());
    }

    /// The table, or `empty` if it has no rows.
    pub(crate) fn render(&self, empty: &str) -> String {
        if self.rows.is_empty() {
            return format!("{empty}\n");
        }
        let titles: Vec<String> = self.titles.iter().map(|title| title.0.clone()).collect();
        let widths: Vec<usize> = (0..titles.len())
            .map(|column| {
                let cells = self.rows.iter().chain([&titles]);
                cells.map(|row| width(&row[column])).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in [&titles].into_iter().chain(&self.rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[column] - width(cell));
                if column > 0 {
                    line.push_str("  ");
                }
                if self.titles[column].1 {
                    line.push_str(&padding);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&padding);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// One thing as a list of its fields; those without a value are left out.
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

/// Columns a text takes; what we print is text of single-width characters.
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
    fn fields_without_a_value_are_left_out() {
        let text = fields(&[
            ("name", Some("a".into())),
            ("moved to", None),
            ("state", Some("running".into())),
        ]);
        assert_eq!(text, "name   a\nstate  running\n");
    }
}
