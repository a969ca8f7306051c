//! What a run of the benchmark found: one row a case, as JSON and CSV alike, and how it compares
//! with an earlier one.

use std::collections::HashMap;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Deserializer, Serialize};
use wgpu_attention::{Caps, DType, Shape, wgpu};

use super::ceilings::Ceilings;
use crate::{NAME, bad_input};

/// A whole run.
#[derive(Serialize, Deserialize)]
pub struct Record {
    pub machine: Machine,
    pub ceilings: Option<Ceilings>,
    pub rows: Vec<Row>,
    /// Other programs on the same cases.
    #[serde(default)]
    pub peers: Vec<Row>,
    /// Cases without a time.
    pub failures: Vec<Failure>,
}

/// Where and with what it ran.
#[derive(Serialize, Deserialize)]
pub struct Machine {
    /// In UTC.
    pub date: String,
    /// This program's name and version, with which its rows begin.
    pub program: String,
    pub system: String,
    pub processors: usize,
    /// Name, driver and backend.
    pub adapter: String,
    pub is_cpu: bool,
    pub subgroups: String,
    pub shader_f16: bool,
    /// The configurations of the matrix units, as `MxNxK`, the products' type and the sums'.
    pub matrices: Vec<String>,
    pub workgroup_memory: u32,
    pub storage_binding: u64,
}

/// One case: what was computed and what it took. A peer's rows look the same.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// `attention/tiled/f16/softmax/causal/b1h16n1024d64`
    pub label: String,
    /// Whose time it is.
    pub program: String,
    pub family: String,
    pub variant: String,
    pub batch: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub len: u32,
    pub head_dim: u32,
    pub dtype: String,
    pub causal: bool,
    /// The list of keys, the rule of a recurrence, the number of parts.
    pub detail: String,
    /// The share of the keys that a list visits.
    pub density: Option<f64>,
    pub median_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    pub repetitions: usize,
    /// Whether the clock rate had settled.
    pub steady: bool,
    /// What measured the times.
    pub clock: String,
    #[serde(deserialize_with = "or_zero")]
    pub tflops: f64,
    /// Bytes of inputs and outputs, each moved once, over the time.
    #[serde(deserialize_with = "or_zero")]
    pub gigabytes_per_second: f64,
    /// The ceiling above this case: `fma`, `matrix` or `copy`.
    pub ceiling: String,
    /// TFLOP/s as a share of what that ceiling allows.
    pub percent_of_ceiling: f64,
    #[serde(deserialize_with = "or_zero")]
    pub max_error: f64,
    /// What the error may be.
    pub bound: f64,
}

/// Records by hand leave cells empty that were not measured.
fn or_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A case without a time, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub label: String,
    pub error: String,
}

impl Machine {
    pub fn new(caps: &Caps) -> Self {
        let matrix = |m: &wgpu::CooperativeMatrixProperties| {
            let (m, n, k, ab, cr) = (m.m_size, m.n_size, m.k_size, m.ab_type, m.cr_type);
            format!("{m}x{n}x{k} {ab:?}→{cr:?}")
        };
        Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            program: program(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            adapter: caps.adapter.clone(),
            is_cpu: caps.is_cpu,
            subgroups: match caps.subgroup {
                Some((least, most)) if least == most => least.to_string(),
                Some((least, most)) => format!("{least} to {most}"),
                None => "none".into(),
            },
            shader_f16: caps.shader_f16,
            matrices: caps.matrices.iter().map(matrix).collect(),
            workgroup_memory: caps.workgroup_memory,
            storage_binding: caps.storage_binding,
        }
    }
}

/// This program's name and version, with which its rows begin.
fn program() -> String {
    format!("{NAME} {}", env!("CARGO_PKG_VERSION"))
}

impl Row {
    /// A row about a shape, with nothing measured yet.
    pub fn at(shape: &Shape, dtype: DType) -> Self {
        Self {
            program: program(),
            batch: shape.batch,
            heads: shape.query_heads,
            kv_heads: shape.key_heads,
            len: shape.query_len,
            head_dim: shape.head_dim,
            dtype: dtype.name().into(),
            ..Self::default()
        }
    }

    /// The row with six digits of every number, which is more than clocks know.
    #[must_use]
    pub fn rounded(mut self) -> Self {
        let six_digits = |number: &mut f64| {
            // Writing a number gives text that reads as one.
            *number = format!("{number:.5e}").parse().unwrap_or(*number);
        };
        let times = [&mut self.median_ms, &mut self.min_ms, &mut self.max_ms];
        let rates = [&mut self.tflops, &mut self.gigabytes_per_second];
        let rest = [&mut self.percent_of_ceiling, &mut self.max_error, &mut self.bound];
        times.into_iter().chain(rates).chain(rest).chain(&mut self.density).for_each(six_digits);
        self
    }

    /// How far apart the repetitions are, in percent of their median.
    pub fn spread_percent(&self) -> f64 {
        100.0 * (self.max_ms - self.min_ms) / self.median_ms
    }
}

impl Record {
    /// Reads what an earlier run wrote: JSON, or CSV by the file's name.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| bad_input(format!("--compare: cannot read `{name}`: {error}")))?;
        let read = match path.extension().is_some_and(|extension| extension == "csv") {
            true => Self::from_csv(&text).map_err(|error| error.to_string()),
            false => serde_json::from_str(&text).map_err(|error| error.to_string()),
        };
        read.map_err(|error| {
            bad_input(format!(
                "--compare: expected a record of `bench --json` or `bench --csv` in `{name}`: {error}"
            ))
        })
    }

    /// A CSV has no more than its rows; lines that begin with `#` are for people.
    fn from_csv(text: &str) -> Result<Self, csv::Error> {
        let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(text.as_bytes());
        let rows = reader.deserialize().collect::<Result<Vec<Row>, _>>()?;
        let ours = |row: &Row| row.program.is_empty() || row.program.starts_with(NAME);
        let (rows, peers) = rows.into_iter().partition(ours);
        let mut machine = Machine::new(&Caps::portable());
        machine.date.clear();
        machine.adapter =
            text.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or("").into();
        Ok(Self { machine, ceilings: None, rows, peers, failures: Vec::new() })
    }

    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    pub fn csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in self.rows.iter().chain(&self.peers) {
            writer.serialize(row)?;
        }
        let rows = String::from_utf8(writer.into_inner().context("writing CSV")?)?;
        let Machine { adapter, date, program, .. } = &self.machine;
        let mut text = format!("# {adapter}; {date}; {program}\n");
        if let Some(ceilings) = &self.ceilings {
            text.push_str(&format!("# {ceilings}\n"));
        }
        Ok(text + &rows)
    }

    /// The peers' rows, each with ours on the same case.
    pub fn beside_peers(&self) -> Vec<(&Row, &Row)> {
        let ours = |peer: &Row| self.rows.iter().find(|row| row.label == peer.label);
        self.peers.iter().filter_map(|peer| Some((peer, ours(peer)?))).collect()
    }

    /// The rows that both have, with the earlier one first.
    pub fn matched<'a>(&'a self, old: &'a Self) -> Vec<(&'a Row, &'a Row)> {
        let earlier: HashMap<&str, &Row> =
            old.rows.iter().map(|row| (row.label.as_str(), row)).collect();
        let pair = |row: &'a Row| Some((*earlier.get(row.label.as_str())?, row));
        self.rows.iter().filter_map(pair).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(times: &[(&str, f64)]) -> Record {
        let row = |&(label, median_ms): &(&str, f64)| Row {
            label: label.into(),
            median_ms,
            density: (median_ms > 2.0).then_some(0.5),
            ..Row::default()
        };
        Record {
            machine: Machine::new(&Caps::portable()),
            ceilings: None,
            rows: times.iter().map(row).collect(),
            peers: vec![Row { program: "other".into(), ..row(&times[0]) }],
            failures: Vec::new(),
        }
    }

    #[test]
    fn csv_and_json_hold_the_same_rows() {
        let record = record(&[("a", 1.5), ("b", 2.5)]);
        let csv = Record::from_csv(&record.csv().expect("written")).expect("read");
        let json: Record = serde_json::from_str(&record.json().expect("written")).expect("read");
        for read in [&csv, &json] {
            assert_eq!(format!("{:?}", read.rows), format!("{:?}", record.rows));
            assert_eq!(format!("{:?}", read.peers), format!("{:?}", record.peers));
        }
    }

    #[test]
    fn records_are_matched_by_label() {
        let (old, new) = (record(&[("a", 1.0), ("b", 2.0)]), record(&[("b", 1.0), ("c", 1.0)]));
        let matched = new.matched(&old);
        assert_eq!(matched.len(), 1);
        assert_eq!((matched[0].0.median_ms, matched[0].1.median_ms), (2.0, 1.0));
    }
}
