//! Columns as kubectl prints them: capital headers, three blanks between, as wide as their widest cell.
//!
//! Cells are one line each; whoever fills them has made foreign text harmless ([`crate::terminal::visible`]).

use crate::terminal::{Style, Terminal};

/// One value of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell with a colour.
    pub(crate) fn styled(style: Style, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            style,
        }
    }

    /// What kubectl writes where there is nothing.
    pub(crate) fn none() -> Self {
        Self::styled(Style::Faint, "<none>")
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(Style::Plain, text)
    }
}

/// Lines of cells under headers.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    headers: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    widths: Vec<usize>,
}

impl Table {
    /// A table without lines.
    pub(crate) fn new(headers: Vec<&'static str>) -> Self {
        let widths = headers.iter().map(|header| width(header)).collect();
        Self {
            headers,
            rows: Vec::new(),
            widths,
        }
    }

    /// Adds a line.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(
            cells.len(),
            self.headers.len(),
            "a line has a cell for each header"
        );
        for (widest, cell) in self.widths.iter_mut().zip(&cells) {
            *widest = (*widest).max(width(&cell.text));
        }
        self.rows.push(cells);
    }

    /// The whole table, each line ended.
    pub(crate) fn render(&self, terminal: Terminal) -> String {
        let headers: Vec<Cell> = self
            .headers
            .iter()
            .map(|header| Cell::styled(Style::Strong, *header))
            .collect();
        let mut text = self.line(terminal, &headers);
        text.push_str(&self.render_rows(terminal));
        text
    }

    /// The lines without the headers.
    pub(crate) fn render_rows(&self, terminal: Terminal) -> String {
        self.rows.iter().map(|row| self.line(terminal, row)).collect()
    }

    /// Makes the columns at least as wide as those of `other`, so that lines printed later stay below the others.
    pub(crate) fn widen_like(&mut self, other: &Self) {
        for (widest, known) in self.widths.iter_mut().zip(&other.widths) {
            *widest = (*widest).max(*known);
        }
    }

    fn line(&self, terminal: Terminal, cells: &[Cell]) -> String {
        const GAP: usize = 3;
        let last = cells
            .iter()
            .rposition(|cell| !cell.text.is_empty())
            .map_or(0, |last| last + 1);
        let mut line = String::new();
        for (index, (cell, widest)) in cells.iter().zip(&self.widths).enumerate().take(last) {
            line.push_str(&terminal.paint(cell.style, cell.text.as_str()));
            if index + 1 < last {
                let blanks = widest.saturating_sub(width(&cell.text)) + GAP;
                line.extend(std::iter::repeat_n(' ', blanks));
            }
        }
        line.push('\n');
        line
    }
}

/// Columns that a text takes, near enough for names and messages.
fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(vec!["NAME", "HEALTH", "NOTE"]);
        table.row(vec![
            "shop".into(),
            Cell::styled(Style::Good, "Healthy"),
            "".into(),
        ]);
        table.row(vec!["payments".into(), "Unhealthy".into(), "é".into()]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let expected = "NAME       HEALTH      NOTE\nshop       Healthy\npayments   Unhealthy   é\n";
        assert_eq!(table().render(Terminal::plain()), expected);
    }

    #[test]
    fn colours_do_not_move_columns() {
        let coloured = table().render(Terminal::coloured());
        assert!(
            coloured.contains("shop       \u{1b}[32mHealthy\u{1b}[0m\n"),
            "{coloured:?}"
        );
    }

    #[test]
    fn later_lines_keep_the_width_of_earlier_ones() {
        let mut later = Table::new(vec!["NAME", "HEALTH", "NOTE"]);
        later.widen_like(&table());
        later.row(vec!["a".into(), "Unknown".into(), "x".into()]);
        assert_eq!(later.render_rows(Terminal::plain()), "a          Unknown     x\n");
    }
}
