//! Figures as people read them: aligned tables on standard output.

use std::time::Duration;

/// Rows of text under a head; the first column to the left, the others to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self {
            rows: vec![head.map(str::to_owned).to_vec()],
        }
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// Prints it.
    #[expect(clippy::print_stdout, reason = "figures are this program's output")]
    pub(crate) fn print(&self) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, &width))| {
                    if column == 0 {
                        format!("{cell:<width$}")
                    } else {
                        format!("{cell:>width$}")
                    }
                });
            println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        println!();
    }
}

/// Prints one line of explanation.
#[expect(clippy::print_stdout, reason = "figures are this program's output")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

/// `1.5 KiB`.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub(crate) fn kib(bytes: u64) -> String {
    format!("{:.1} KiB", bytes as f64 / 1024.0)
}

/// `12.3 µs`, of one operation among `count`.
pub(crate) fn micros(total: Duration, count: u64) -> String {
    format!("{:.2} µs", total.as_secs_f64() * 1e6 / to_f64(count.max(1)))
}

/// Operations in a second of `total`: `152 k/s`.
pub(crate) fn per_second(total: Duration, count: u64) -> String {
    format!("{:.0} k/s", to_f64(count) / total.as_secs_f64().max(1e-9) / 1e3)
}

/// `0.52 ×`.
pub(crate) fn ratio(ours: Duration, theirs: Duration) -> String {
    format!("{:.2} ×", ours.as_secs_f64() / theirs.as_secs_f64().max(1e-9))
}

/// The middle one; for an even number the lower of the two.
pub(crate) fn median<T: Copy + Ord>(values: &mut [T]) -> Option<T> {
    values.sort_unstable();
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// The value below which `share` (0 to 1) of them lie; `values` must be sorted.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index between 0 and the length"
)]
pub(crate) fn quantile<T: Copy>(values: &[T], share: f64) -> Option<T> {
    let last = values.len().checked_sub(1)?;
    values
        .get((to_f64(last as u64) * share).round() as usize)
        .copied()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of operations are far below 2^52"
)]
fn to_f64(count: u64) -> f64 {
    count as f64
}
