//! The report: one HTML page that needs nothing else, with plots, the machine and every case.

use std::fmt::{Display, Write as _};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::record::{Machine, Record, Row};
use super::sweep::Family;
use super::tables::{self, significant};
use crate::bad_input;

mod plots;

/// A folder that can be written.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes the folder, before anything is timed for it.
    pub fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(|error| {
            bad_input(format!("--report: cannot make the folder `{}`: {error}", path.display()))
        })?;
        Ok(Self(path.to_owned()))
    }

    /// Writes `index.html` and says where. `compared` are pairs of rows of an
    /// earlier record, and of peers, with the record's own.
    pub fn write(&self, record: &Record, compared: [&[(&Row, &Row)]; 2]) -> Result<PathBuf> {
        let path = self.0.join("index.html");
        fs::write(&path, page(record, compared)?)
            .with_context(|| format!("writing `{}`", path.display()))?;
        Ok(path)
    }
}

fn page(record: &Record, compared: [&[(&Row, &Row)]; 2]) -> Result<String> {
    let Machine { adapter, program, date, .. } = &record.machine;
    let titled = ["An earlier run", "Other programs"].into_iter().zip(compared);
    let ratios = titled.filter(|(_, pairs)| !pairs.is_empty()).map(|(title, pairs)| {
        let lines = html_rows(&tables::RATIOS, &tables::ratio_lines(pairs));
        format!(
            "<h2>{title}</h2>\n<p>Above 1, this run is faster.</p>\n\
             <div class=\"wide\"><table>{lines}</table></div>\n"
        )
    });
    let pieces = [
        ("adapter", escape(adapter)),
        ("program", escape(program)),
        ("date", escape(date)),
        ("facts", facts(record)),
        ("plots", all_plots(record)?.join("\n")),
        ("rows", html_rows(&tables::ROWS, &tables::row_lines(record))),
        ("ratios", ratios.collect()),
    ];
    let mut page = String::new();
    let mut rest = include_str!("report/page.html");
    // One pass over the template: what is put in is not looked at again.
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        page.push_str(before);
        page.extend(pieces.iter().filter(|piece| piece.0 == name).map(|piece| piece.1.as_str()));
        rest = after;
    }
    Ok(page + rest)
}

fn all_plots(record: &Record) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for family in Family::ALL {
        all.extend(plots::time_over_length(&record.rows, family)?);
    }
    if let Some(ceilings) = &record.ceilings {
        all.extend(plots::roofline(&record.rows, ceilings)?);
    }
    all.extend(plots::speed_over_density(&record.rows)?);
    Ok(all)
}

fn facts(record: &Record) -> String {
    let machine = &record.machine;
    let mut facts: Vec<(&str, String)> = vec![
        ("system", format!("{}, {} processors", machine.system, machine.processors)),
        ("subgroups", machine.subgroups.clone()),
        ("native f16", if machine.shader_f16 { "yes" } else { "no" }.into()),
        ("matrix units", if machine.matrices.is_empty() { "none" } else { "" }.into()),
        ("workgroup memory", format!("{} KiB", machine.workgroup_memory >> 10)),
        ("largest binding", format!("{} MiB", machine.storage_binding >> 20)),
    ];
    if !machine.matrices.is_empty() {
        facts[3].1 = machine.matrices.join(", ");
    }
    if let Some(ceilings) = &record.ceilings {
        let tflops = |number: f64| format!("{} TFLOP/s", significant(number));
        facts.push(("ceiling of f32 multiply-adds", tflops(ceilings.fma_tflops)));
        facts.extend(ceilings.matrix_tflops.map(|peak| ("ceiling of matrix units", tflops(peak))));
        let copy = significant(ceilings.copy_gigabytes_per_second);
        facts.push(("ceiling of a copying kernel", format!("{copy} GB/s")));
    }
    let lines = facts.iter().map(|(name, fact)| {
        format!("<tr><td>{}</td><td>{}</td></tr>\n", escape(name), escape(fact))
    });
    lines.collect()
}

fn html_rows(header: &[&str], lines: &[Vec<String>]) -> String {
    let mut html = String::new();
    let mut line = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells: String = cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(html, "<tr>{cells}</tr>");
    };
    line("th", &mut header.iter().copied());
    for cells in lines {
        line("td", &mut cells.iter().map(String::as_str));
    }
    html
}

fn escape(text: impl Display) -> String {
    text.to_string().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
