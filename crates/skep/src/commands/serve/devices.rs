//! Flags on the devices that instances are packed onto.

use std::{str::FromStr, sync::Arc};

use anyhow::{Context, bail};
use clap::Args;
use skep_runtime::{CpuDevice, CpuDevices};

use crate::{
    flag_values::{cpus, members, size},
    units::human,
};

#[derive(Debug, Args)]
#[command(next_help_heading = "Devices")]
pub(super) struct DeviceArgs {
    /// A device: some of the machine's CPUs, as taskset lists them, and the memory that the models on it may hold. May be
    /// given several times. Instances of groups of KIND_AUTO are packed onto the devices, by memory and cores, and run on
    /// their device's CPUs; others run on all CPUs (Skep's own)
    #[arg(long = "device", value_name = "name=NAME,cpus=0-3,memory=8G")]
    devices: Vec<DeviceFlag>,
}

#[derive(Debug, Clone)]
struct DeviceFlag(CpuDevice);

const EXPECTED: &str = "expected name=NAME,cpus=0-3,memory=8G";

impl FromStr for DeviceFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut name, mut own_cpus, mut memory) = (None, None, None);
        for (key, value) in members(text).ok_or(EXPECTED)? {
            let is_again = match key {
                "name" if !value.is_empty() => name.replace(value).is_some(),
                "cpus" => own_cpus.replace(cpus(&value)?).is_some(),
                "memory" => memory.replace(size(&value)?).is_some(),
                _ => return Err(format!("`{key}={value}`: {EXPECTED}")),
            };
            if is_again {
                return Err(format!("`{key}` is given twice"));
            }
        }
        let missing = |key: &str| format!("`{key}` is missing: {EXPECTED}");
        Ok(Self(CpuDevice {
            name: name.ok_or_else(|| missing("name"))?,
            cpus: own_cpus.ok_or_else(|| missing("cpus"))?,
            memory_bytes: memory.ok_or_else(|| missing("memory"))?,
        }))
    }
}

impl DeviceArgs {
    /// The devices; `None` without `--device`.
    ///
    /// # Errors
    /// If the process may not use a CPU of them, if two share a name or a CPU, or if their memory is more than the budget
    /// of all models.
    pub(super) fn declared(&self, budget: Option<u64>) -> anyhow::Result<Option<Arc<CpuDevices>>> {
        if self.devices.is_empty() {
            return Ok(None);
        }
        let own = skep_host::own_cpus().context("which CPUs this process may use")?;
        let devices: Vec<CpuDevice> = self.devices.iter().map(|flag| flag.0.clone()).collect();
        check(&devices, &own, budget)?;
        for CpuDevice {
            name,
            cpus,
            memory_bytes,
        } in &devices
        {
            tracing::info!("device `{name}`: CPUs {cpus}, {}", human(*memory_bytes));
        }
        Ok(Some(CpuDevices::new(devices)))
    }
}

fn check(devices: &[CpuDevice], own: &[u32], budget: Option<u64>) -> anyhow::Result<()> {
    for (place, device) in devices.iter().enumerate() {
        let name = &device.name;
        let mut numbers = device.cpus.numbers();
        if let Some(cpu) = numbers.find(|cpu| !own.contains(cpu)) {
            let own = skep_types::CpuSet::new(own.iter().copied());
            let own = own.map_or_else(|| "none".to_owned(), |own| own.to_string());
            bail!(
                "--device name={name},cpus={}: this process may not use CPU {cpu}, but {own}",
                device.cpus
            );
        }
        for other in &devices[..place] {
            if other.name == *name {
                bail!("--device: two devices are named `{name}`");
            }
            if let Some(cpu) = device.cpus.numbers().find(|cpu| other.cpus.has(*cpu)) {
                let other = &other.name;
                bail!(
                    "--device: `{other}` and `{name}` both have CPU {cpu}, expected devices without a CPU in common"
                );
            }
        }
    }
    let all = devices.iter().map(|device| device.memory_bytes);
    let all = all.fold(0, u64::saturating_add);
    match budget {
        Some(budget) if all > budget => bail!(
            "--device: the devices have {} of memory together, and models may hold {}\n  `--memory-budget` sets it",
            human(all),
            human(budget)
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> Result<CpuDevice, String> {
        DeviceFlag::from_str(text).map(|flag| flag.0)
    }

    #[test]
    fn a_device_is_read() {
        let one = device("name=cpu0,cpus=0-2,4,memory=8G").expect("a device");
        assert_eq!(
            (&*one.name, one.cpus.to_string()),
            ("cpu0", "0-2,4".to_owned())
        );
        assert_eq!(one.memory_bytes, 8 << 30);
        for (text, expected) in [
            ("", EXPECTED),
            ("cpu0", EXPECTED),
            ("name=,cpus=0,memory=1", "`name=`: expected name"),
            ("name=a,cpus=0", "`memory` is missing"),
            ("name=a,memory=1", "`cpus` is missing"),
            ("cpus=0,memory=1", "`name` is missing"),
            ("name=a,cpus=0,cpus=1,memory=1", "`cpus` is given twice"),
            ("name=a,cpus=3-0,memory=1", "cpus=`3-0`: an empty range"),
            (
                "name=a,cpus=0,0,memory=1",
                "cpus=`0,0`: a CPU is named twice",
            ),
            ("name=a,cpus=0,memory=0", "memory=0: expected bytes above 0"),
            ("name=a,cpus=0,memory=1,count=2", "`count=2`: expected name"),
        ] {
            let error = device(text).expect_err(text);
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn devices_that_contradict_each_other_or_the_machine_are_refused() {
        let refused = |texts: &[&str], budget: Option<u64>| {
            let devices = texts.iter().map(|text| device(text).expect(text));
            let devices: Vec<CpuDevice> = devices.collect();
            check(&devices, &[0, 1, 3], budget).map_err(|error| error.to_string())
        };
        let two = ["name=a,cpus=0-1,memory=2G", "name=b,cpus=3,memory=1G"];
        assert_eq!(refused(&two, Some(3 << 30)), Ok(()));
        for (texts, budget, expected) in [
            (
                two,
                Some((3 << 30) - 1),
                "--device: the devices have 3.00 GiB of memory together",
            ),
            (
                [two[0], "name=a,cpus=3,memory=1G"],
                None,
                "--device: two devices are named `a`",
            ),
            (
                [two[0], "name=b,cpus=1,memory=1G"],
                None,
                "--device: `a` and `b` both have CPU 1",
            ),
            (
                [two[0], "name=b,cpus=2-3,memory=1G"],
                None,
                "--device name=b,cpus=2-3: this process may not use CPU 2, but 0-1,3",
            ),
        ] {
            let error = refused(&texts, budget).expect_err(expected);
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
