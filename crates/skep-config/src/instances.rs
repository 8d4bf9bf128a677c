//! Instance groups: how many instances of a model there are, and on what.

use skep_proto::inference::{self, model_instance_group::Kind};

use crate::{
    error::ConfigError,
    model::{Notice, backends},
};

/// Most instances of a model: each has a thread, so a larger number is a mistake.
const MAX_INSTANCES: i32 = 1024;

/// Where the instances of a group run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstanceKind {
    /// On the CPU.
    Cpu,
    /// Where the backend decides; every backend decides for the CPU today.
    Model,
}

/// Instances of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceGroup {
    /// The group's name.
    pub name: String,
    /// How many instances; at least 1.
    pub count: u32,
    /// Where they run.
    pub kind: InstanceKind,
    /// Whether they are loaded and get no requests.
    pub passive: bool,
    /// `rate_limiter.priority`, at least 1: with 2 they get half as much of a contended device as with 1.
    pub priority: u32,
}

/// Fills in what a configuration leaves open, as Triton does on a machine without GPUs, and refuses what it refuses; with
/// `gpu_as_cpu` groups of GPUs become groups of the CPU instead, and each such setting gets a notice.
///
/// `proto.name` and `proto.backend` are already set: the default count follows the configured backend's name.
pub(crate) fn read(
    proto: &mut inference::ModelConfig,
    gpu_as_cpu: bool,
    notices: &mut Vec<Notice>,
) -> Result<Vec<InstanceGroup>, ConfigError> {
    let model = proto.name.clone();
    if proto.instance_group.is_empty() {
        let group = inference::ModelInstanceGroup {
            name: model.clone(),
            ..Default::default()
        };
        proto.instance_group.push(group);
    }
    let mut typed = Vec::with_capacity(proto.instance_group.len());
    for (index, group) in proto.instance_group.iter_mut().enumerate() {
        if group.name.is_empty() {
            group.name = format!("{model}_{index}");
        }
        if gpu_as_cpu {
            put_on_cpu(index, group, notices);
        }
        typed.push(read_group(&model, &proto.backend, index, group)?);
    }
    let instances: u64 = typed.iter().map(|group| u64::from(group.count)).sum();
    if instances > u64::from(MAX_INSTANCES.unsigned_abs()) {
        let reason = format!(
            "the instance groups of model {model} have {instances} instances together, expected at most {MAX_INSTANCES}"
        );
        return Err(ConfigError::invalid(&model, "instance_group", reason));
    }
    if typed.iter().all(|group| group.passive) {
        let reason = format!(
            "every instance group of model {model} is passive, expected at least one that takes requests"
        );
        return Err(ConfigError::invalid(&model, "instance_group", reason));
    }
    Ok(typed)
}

/// Takes GPUs out of a group.
fn put_on_cpu(index: usize, group: &mut inference::ModelInstanceGroup, notices: &mut Vec<Notice>) {
    let mut note = |field: &str| {
        notices.push(Notice::about_gpus(format!(
            "instance_group[{index}].{field}"
        )));
    };
    if group.kind == Kind::Gpu as i32 {
        note("kind");
        group.set_kind(Kind::Cpu);
    }
    if !group.gpus.is_empty() {
        note("gpus");
        group.gpus.clear();
    }
}

fn read_group(
    model: &str,
    backend: &str,
    index: usize,
    group: &mut inference::ModelInstanceGroup,
) -> Result<InstanceGroup, ConfigError> {
    let error = |field: &str, name: &str, text: &str| {
        let reason = format!("instance group {name} of model {model} {text}");
        Err(ConfigError::invalid(
            model,
            format!("instance_group[{index}].{field}"),
            reason,
        ))
    };
    let kind = match Kind::try_from(group.kind) {
        Ok(Kind::Auto | Kind::Cpu) => InstanceKind::Cpu,
        Ok(Kind::Model) => InstanceKind::Model,
        Ok(Kind::Gpu) => {
            let text = format!(
                "has kind KIND_GPU but no GPUs are available\n{}",
                on_cpu("write `kind: KIND_CPU`")
            );
            return error("kind", &group.name, &text);
        }
        Err(_) => {
            return error(
                "kind",
                &group.name,
                &format!("has unknown kind {}", group.kind),
            );
        }
    };
    let kind_name = if kind == InstanceKind::Cpu {
        Kind::Cpu
    } else {
        Kind::Model
    };
    if !group.gpus.is_empty() {
        let text = format!(
            "has kind {} but specifies one or more GPUs\n{}",
            kind_name.as_str_name(),
            on_cpu("remove `gpus`")
        );
        return error("gpus", &group.name, &text);
    }
    if !(0..=MAX_INSTANCES).contains(&group.count) {
        let text = format!(
            "has count {}, expected an integer from 0 (default) to {MAX_INSTANCES}",
            group.count
        );
        return error("count", &group.name, &text);
    }
    if group.count == 0 {
        group.count = if kind == InstanceKind::Cpu && backend == backends::ONNXRUNTIME {
            2
        } else {
            1
        };
    }
    group.set_kind(kind_name);
    Ok(InstanceGroup {
        name: group.name.clone(),
        count: group.count.unsigned_abs(),
        kind,
        passive: group.passive,
        // 0 is 1, as on Triton.
        priority: group
            .rate_limiter
            .as_ref()
            .map_or(1, |limiter| limiter.priority.max(1)),
    })
}

/// How a group of GPUs gets onto the CPU.
fn on_cpu(edit: &str) -> String {
    format!(
        "{edit}, or start with `--gpu-as-cpu`, which serves the groups of every model on the CPU"
    )
}

#[cfg(test)]
mod tests {
    use super::read;
    use crate::parse_pbtxt;

    fn groups(backend: &str, text: &str) -> Result<String, String> {
        let text = format!("name: 'm' backend: '{backend}' {text}");
        let mut config = parse_pbtxt(text.as_bytes(), "c").expect("parses");
        let typed = read(&mut config, false, &mut Vec::new()).map_err(|error| error.to_string())?;
        for (group, proto) in typed.iter().zip(&config.instance_group) {
            assert_eq!(
                (&group.name, i64::from(group.count)),
                (&proto.name, i64::from(proto.count))
            );
        }
        let shown: Vec<String> = config
            .instance_group
            .iter()
            .map(|g| format!("{} {} {}", g.name, g.count, g.kind().as_str_name()))
            .collect();
        Ok(shown.join("; "))
    }

    #[test]
    fn defaults_are_tritons() {
        for (backend, text, expected) in [
            ("onnxruntime", "", "m 2 KIND_CPU"),
            ("embedded", "", "m 1 KIND_CPU"),
            ("mock", "instance_group {}", "m_0 1 KIND_CPU"),
            (
                "onnxruntime",
                "instance_group [ {}, { name: 'g' count: 3 }, { kind: KIND_MODEL } ]",
                "m_0 2 KIND_CPU; g 3 KIND_CPU; m_2 1 KIND_MODEL",
            ),
        ] {
            assert_eq!(
                groups(backend, text).as_deref(),
                Ok(expected),
                "{backend} {text}"
            );
        }
    }

    #[test]
    fn refusals_use_tritons_words() {
        for (text, expected) in [
            (
                "kind: KIND_GPU",
                "instance group m_0 of model m has kind KIND_GPU but no GPUs are available",
            ),
            (
                "kind: KIND_CPU gpus: 0",
                "instance group m_0 of model m has kind KIND_CPU but specifies one or more GPUs",
            ),
            (
                "gpus: [0]",
                "instance group m_0 of model m has kind KIND_CPU but specifies one or more GPUs",
            ),
            (
                "kind: KIND_MODEL gpus: 0",
                "instance group m_0 of model m has kind KIND_MODEL but specifies one or more GPUs",
            ),
            (
                "passive: true",
                "every instance group of model m is passive, expected at least one that takes requests",
            ),
            (
                "count: -1",
                "instance group m_0 of model m has count -1, expected an integer from 0 (default) to 1024",
            ),
            (
                "count: 1025",
                "instance group m_0 of model m has count 1025, expected an integer from 0 (default) to 1024",
            ),
        ] {
            let refusal = groups("mock", &format!("instance_group {{ {text} }}")).expect_err(text);
            assert_eq!(refusal.lines().next(), Some(expected), "{text}");
            let is_about_gpus = text.contains("gpu") || text.contains("GPU");
            assert_eq!(refusal.contains("`--gpu-as-cpu`"), is_about_gpus, "{text}");
        }
    }

    #[test]
    fn groups_of_gpus_are_served_on_the_cpu_where_that_is_asked_for() {
        let text = "name: 'm' backend: 'onnxruntime' instance_group [
            { kind: KIND_GPU gpus: [ 0, 1 ] }, { count: 3 kind: KIND_GPU }, { kind: KIND_MODEL gpus: 0 }, { gpus: 0 }, {} ]";
        let mut config = parse_pbtxt(text.as_bytes(), "c").expect("parses");
        let mut notices = Vec::new();
        read(&mut config, true, &mut notices).expect("valid");
        let groups = config.instance_group.iter();
        let groups: Vec<_> = groups
            .map(|g| (g.count, g.kind().as_str_name(), g.gpus.len()))
            .collect();
        let (cpu, model) = ("KIND_CPU", "KIND_MODEL");
        let expected = [
            (2, cpu, 0),
            (3, cpu, 0),
            (1, model, 0),
            (2, cpu, 0),
            (2, cpu, 0),
        ];
        assert_eq!(groups, expected);
        let fields: Vec<&str> = notices.iter().map(|notice| &*notice.field).collect();
        let expected = ["0].kind", "0].gpus", "1].kind", "2].gpus", "3].gpus"];
        assert_eq!(fields, expected.map(|end| format!("instance_group[{end}")));
    }

    #[test]
    fn groups_are_bounded_together() {
        assert!(groups("mock", &"instance_group { count: 512 } ".repeat(2)).is_ok());
        assert_eq!(
            groups("mock", &"instance_group { count: 512 } ".repeat(3)),
            Err("the instance groups of model m have 1536 instances together, expected at most 1024".to_owned())
        );
    }
}
