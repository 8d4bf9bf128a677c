//! Tables on a terminal: columns as wide as what is in them, two spaces apart.

use std::fmt::Write;

use crate::colour::{Colour, Colours};

/// Text, and the colour it has where there are colours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TextCell {
    pub(crate) text: String,
    pub(crate) colour: Option<Colour>,
}

impl<T: Into<String>> From<T> for TextCell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            colour: None,
        }
    }
}

/// Rows of cells; the first is mostly the heading.
#[derive(Debug, Default)]
pub(crate) struct TextTable {
    rows: Vec<Vec<TextCell>>,
    left: Vec<usize>,
}

impl TextTable {
    /// A table whose columns with these indices are aligned to the left, all others to the right.
    pub(crate) fn new(left: &[usize]) -> Self {
        Self {
            rows: Vec::new(),
            left: left.to_vec(),
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<TextCell>) {
        self.rows.push(cells);
    }

    /// The lines, without spaces at their ends.
    pub(crate) fn lines(&self, colours: Colours) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width_of = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| letters(&cell.text)).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width_of).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            // Spaces are written when something follows them.
            let mut spaces = 0;
            for (column, cell) in row.iter().enumerate() {
                let room = widths[column] - letters(&cell.text);
                let (before, after) = if self.left.contains(&column) {
                    (0, room)
                } else {
                    (room, 0)
                };
                if !cell.text.is_empty() {
                    let painted = cell.colour.map(|c| colours.paint(c, &cell.text));
                    let painted = painted.as_deref().unwrap_or(&cell.text);
                    let width = spaces + before;
                    write!(line, "{:width$}{painted}", "").expect("a string takes all");
                    spaces = after + 2;
                } else {
                    spaces += room + 2;
                }
            }
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

/// How many columns a text takes in a table.
pub(crate) fn letters(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut table = TextTable::new(&[1]);
        table.row(vec!["n".into(), "name".into(), "ms".into()]);
        table.row(vec!["1000".into(), "ä".into(), "".into()]);
        table.row(vec!["".into(), "longest".into(), "10.25".into()]);
        let text = "   n  name        ms\n1000  ä\n      longest  10.25\n";
        assert_eq!(table.lines(Colours::NONE), text);
    }
}
