//! A page in three forms: Markdown, HTML, and text for a terminal.

use std::fmt::Write;

/// A part of a page.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Title(String),
    Heading(String),
    Paragraph(String),
    Table { head: Vec<&'static str>, rows: Vec<Vec<String>> },
    Image { file: &'static str, what: &'static str },
}

pub(crate) fn markdown(parts: &[Part]) -> String {
    let mut page = String::new();
    for part in parts {
        let _ = match part {
            Part::Title(text) => writeln!(page, "# {text}\n"),
            Part::Heading(text) => writeln!(page, "## {text}\n"),
            Part::Paragraph(text) => writeln!(page, "{text}\n"),
            Part::Table { head, rows } => {
                writeln!(page, "{}", table(head, rows, |cell| cell.replace('|', "\\|")))
            }
            Part::Image { file, what } => writeln!(page, "![{what}]({file})\n"),
        };
    }
    page
}

/// As Markdown, which is made to be read as it is.
pub(crate) fn text(parts: &[Part]) -> String {
    let mut page = String::new();
    for part in parts {
        let _ = match part {
            Part::Title(text) | Part::Heading(text) => writeln!(page, "{text}\n"),
            Part::Paragraph(text) => writeln!(page, "{text}\n"),
            Part::Table { head, rows } => writeln!(page, "{}", table(head, rows, str::to_owned)),
            Part::Image { .. } => Ok(()),
        };
    }
    page.trim_end().to_owned()
}

fn table(head: &[&str], rows: &[Vec<String>], cell: impl Fn(&str) -> String) -> String {
    let head: Vec<String> = head.iter().map(|text| cell(text)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|text| cell(text)).collect()).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells = rows.iter().chain([&head]).filter_map(|row| row.get(column));
            cells.map(|text| text.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let line = |row: &[String]| {
        let cells = row.iter().zip(&widths).map(|(text, width)| format!(" {text:width$} "));
        format!("|{}|", cells.collect::<Vec<_>>().join("|"))
    };
    let rule =
        format!("|{}|", widths.iter().map(|width| "-".repeat(width + 2)).collect::<Vec<_>>().join("|"));
    let mut text = format!("{}\n{rule}\n", line(&head));
    for row in &rows {
        let _ = writeln!(text, "{}", line(row));
    }
    text
}

const STYLE: &str = "body{font:16px/1.5 sans-serif;margin:2em auto;max-width:80em;padding:0 1em}\
    table{border-collapse:collapse;font-size:14px}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}\
    img{max-width:100%}";

pub(crate) fn html(parts: &[Part]) -> String {
    let title =
        parts.iter().find_map(|part| if let Part::Title(text) = part { Some(text.as_str()) } else { None });
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{}</title><style>{STYLE}</style>\n",
        escaped(title.unwrap_or_default())
    );
    for part in parts {
        let _ = match part {
            Part::Title(text) => writeln!(page, "<h1>{}</h1>", escaped(text)),
            Part::Heading(text) => writeln!(page, "<h2>{}</h2>", escaped(text)),
            Part::Paragraph(text) => writeln!(page, "<p>{}</p>", escaped(text)),
            Part::Image { file, what } => {
                writeln!(page, "<p><img src=\"{}\" alt=\"{}\"></p>", escaped(file), escaped(what))
            }
            Part::Table { head, rows } => {
                let row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
                    let cells = cells.map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)));
                    format!("<tr>{}</tr>\n", cells.collect::<String>())
                };
                let mut table = row("th", &mut head.iter().copied());
                for cells in rows {
                    table += &row("td", &mut cells.iter().map(String::as_str));
                }
                writeln!(page, "<table>\n{table}</table>")
            }
        };
    }
    page + "</html>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Vec<Part> {
        vec![
            Part::Title("a < b".into()),
            Part::Table { head: vec!["x", "long"], rows: vec![vec!["1|2".into(), "y".into()]] },
        ]
    }

    #[test]
    fn a_table_keeps_its_columns_in_every_form() {
        assert_eq!(markdown(&page()), "# a < b\n\n| x    | long |\n|------|------|\n| 1\\|2 | y    |\n\n");
        assert!(text(&page()).ends_with("| x   | long |\n|-----|------|\n| 1|2 | y    |"));
        assert!(html(&page()).contains("<tr><td>1|2</td><td>y</td></tr>"));
    }

    #[test]
    fn what_html_would_take_for_its_own_is_escaped() {
        assert!(html(&page()).contains("<h1>a &lt; b</h1>"));
    }
}
