//! What the command line says of devices and rates.

use std::{collections::BTreeMap, path::Path, str::FromStr, time::Duration};

use anyhow::{Context, bail};
use skep_placer::packing::Resources;

use crate::{
    commands::profile::MAX_BYTES,
    flag_values::{cpus, members, positive_millis, size},
};

/// A device, or several equal ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceFlag {
    name: String,
    cores: u64,
    bytes: u64,
    count: usize,
}

/// The most devices of one flag.
const MAX_COUNT: usize = 100_000;

const EXPECTED: &str = "expected name=NAME,cpus=0-3,memory=8G and, for several equal ones, count=N";

impl FromStr for DeviceFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut name, mut cores, mut bytes, mut count) = (None, None, None, 1);
        for (key, value) in members(text).ok_or(EXPECTED)? {
            match key {
                "name" if !value.is_empty() => name = Some(value),
                "cpus" => cores = Some(cpus(&value)?.count().into()),
                "memory" => bytes = Some(size(&value)?),
                "count" => {
                    let number = value.parse().ok();
                    let number = number.filter(|number| (1..=MAX_COUNT).contains(number));
                    count = number
                        .ok_or_else(|| format!("count={value}: expected 1 to {MAX_COUNT}"))?;
                }
                _ => return Err(format!("`{key}={value}`: {EXPECTED}")),
            }
        }
        match (name, cores, bytes) {
            (Some(name), Some(cores), Some(bytes)) => Ok(Self {
                name,
                cores,
                bytes,
                count,
            }),
            _ => Err(EXPECTED.to_owned()),
        }
    }
}

/// Devices with their names.
pub(super) fn devices(flags: &[DeviceFlag]) -> anyhow::Result<(Vec<String>, Vec<Resources>)> {
    let (mut names, mut devices) = (Vec::new(), Vec::new());
    for flag in flags {
        for number in 0..flag.count {
            names.push(match flag.count {
                1 => flag.name.clone(),
                _ => format!("{}-{number}", flag.name),
            });
            devices.push(Resources {
                bytes: flag.bytes,
                millicores: flag.cores * 1000,
            });
        }
    }
    let mut sorted = names.clone();
    sorted.sort();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("--device: two devices are named `{}`", pair[0]);
    }
    Ok((names, devices))
}

/// What a model is to serve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Demand {
    /// Requests a second.
    pub(super) rate: f64,
    /// Its own objective.
    pub(super) objective: Option<Duration>,
}

/// `MODEL=RATE`, or `MODEL=RATE,MS` with an objective.
pub(super) fn demand(text: &str) -> Result<(String, Demand), String> {
    let (model, rest) = text
        .rsplit_once('=')
        .filter(|(model, _)| !model.is_empty())
        .ok_or("expected a model and requests a second, as in resnet=40 or resnet=40,100 with an objective in milliseconds")?;
    let (rate, objective) = match rest.split_once(',') {
        Some((rate, objective)) => (rate, Some(objective)),
        None => (rest, None),
    };
    Ok((model.to_owned(), numbers(rate, objective)?))
}

fn numbers(rate: &str, objective: Option<&str>) -> Result<Demand, String> {
    let number = rate.trim().parse::<f64>().ok();
    let rate = number
        .filter(|rate| rate.is_finite() && *rate >= 0.0)
        .ok_or_else(|| format!("rate `{}`: expected requests a second from 0", rate.trim()))?;
    let objective = objective.map(millis).transpose()?;
    Ok(Demand { rate, objective })
}

/// Milliseconds above 0.
pub(super) fn millis(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    positive_millis(text).map_err(|_| format!("objective `{text}`: expected milliseconds above 0"))
}

/// A table of `MODEL,RATE` or `MODEL,RATE,OBJECTIVE_MS`, with or without a heading that begins with `model`.
pub(super) fn table(path: &Path) -> anyhow::Result<Vec<(String, Demand)>> {
    let text = skep_host::read_named_text(path, MAX_BYTES);
    let text = text.with_context(|| format!("--rates {}", path.display()))?;
    let mut demands = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let is_heading = index == 0 && line.to_ascii_lowercase().starts_with("model,");
        if line.is_empty() || line.starts_with('#') || is_heading {
            continue;
        }
        let context = || format!("--rates {}: line {}", path.display(), index + 1);
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let (model, rate, objective) = match fields[..] {
            [model, rate] => (model, rate, None),
            [model, rate, objective] => (model, rate, Some(objective)),
            _ => bail!(
                "{}: `{line}`: expected MODEL,RATE or MODEL,RATE,MS",
                context()
            ),
        };
        let numbers = numbers(rate, objective).map_err(anyhow::Error::msg);
        demands.push((model.to_owned(), numbers.with_context(context)?));
    }
    Ok(demands)
}

/// Each model once.
pub(super) fn by_model(demands: Vec<(String, Demand)>) -> anyhow::Result<BTreeMap<String, Demand>> {
    let mut models = BTreeMap::new();
    for (model, demand) in demands {
        if models.insert(model.clone(), demand).is_some() {
            bail!("model `{model}` has two rates");
        }
    }
    Ok(models)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        let device = |text: &str| DeviceFlag::from_str(text);
        let four = DeviceFlag {
            name: "cpu0".to_owned(),
            cores: 4,
            bytes: 8 << 30,
            count: 1,
        };
        assert_eq!(device("name=cpu0,cpus=0-3,memory=8G"), Ok(four.clone()));
        assert_eq!(device("memory=8GiB,cpus=0,2,5-6,name=cpu0"), Ok(four));
        for text in [
            "",
            "cpu0",
            "name=a,cpus=0-3",
            "name=a,cpus=3-0,memory=1G",
            "name=a,cpus=0,0,memory=1G",
            "name=a,cpus=x,memory=1G",
            "name=a,cpus=0,memory=0",
            "name=a,cpus=0,memory=1X",
            "name=a,cpus=0,memory=-1",
            "name=a,cpus=0,memory=99999999999T",
            "name=a,cpus=0,memory=1G,count=0",
            "name=a,cpus=0,memory=1G,colour=red",
        ] {
            assert!(device(text).is_err(), "{text}");
        }
        let three = device("name=n,cpus=0-1,memory=512M,count=3").expect("devices");
        let (names, all) = devices(std::slice::from_ref(&three)).expect("devices");
        assert_eq!(names, ["n-0", "n-1", "n-2"]);
        assert_eq!((all[2].bytes, all[2].millicores), (512 << 20, 2000));
        assert!(devices(&[three.clone(), three]).is_err());
    }

    #[test]
    fn rates_are_read() {
        let read = |text: &str| demand(text).map(|(model, one)| (model, one.rate, one.objective));
        assert_eq!(read("a=b=4"), Ok(("a=b".to_owned(), 4.0, None)));
        let objective = Some(Duration::from_micros(12_500));
        assert_eq!(read("m=0,12.5"), Ok(("m".to_owned(), 0.0, objective)));
        for text in [
            "m", "=4", "m=-1", "m=nan", "m=inf", "m=1,0", "m=1,-5", "m=1,nan",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
