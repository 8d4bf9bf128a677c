//! `instance_group`: how many instances a model has, and where they run.

use skep_proto::inference::{self, model_instance_group::Kind};

use super::{
    live,
    review::{Review, TENSORRT_ONLY},
};
use crate::{
    error::ConfigError,
    vocabulary::{backends, context::ConfigContext, notice::Notice},
};

/// The most instances of a model. Each has a thread, so a larger number is a mistake.
const MAX_INSTANCES: i32 = 1024;

/// Where the instances of a group run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstanceKind {
    /// On one of the server's devices, which it chooses.
    Auto,
    /// On the CPU.
    Cpu,
    /// Where the backend decides. Today every backend chooses the CPU.
    Model,
}

/// Instances of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceGroup {
    /// The group's name.
    pub name: String,
    /// The number of instances; at least 1.
    pub count: u32,
    /// Where they run.
    pub kind: InstanceKind,
    /// Whether they are loaded but get no requests.
    pub passive: bool,
    /// `rate_limiter.priority`, at least 1. With 2 they get half as much of a contended device as with 1.
    pub priority: u32,
    /// What each execution of an instance needs; empty if the server does not limit executions by resources.
    pub resources: Vec<ResourceNeed>,
}

/// What an execution needs of a resource (`rate_limiter.resources`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ResourceNeed {
    /// The resource's name.
    pub name: String,
    /// Whether all devices share its copies; otherwise each device has its own.
    pub global: bool,
    /// How many copies.
    pub count: u32,
}

/// Why resources have no effect.
const NO_RATE_LIMIT: &str = "no effect: executions do not wait for resources unless the server is started with \
                             `--rate-limit=execution_count`";

pub(super) fn review(
    review: &mut Review<'_>,
    groups: &[inference::ModelInstanceGroup],
) -> Result<(), ConfigError> {
    for (index, group) in groups.iter().enumerate() {
        review_group(review, &format!("instance_group[{index}]"), group)?;
    }
    Ok(())
}

fn review_group(
    review: &mut Review<'_>,
    path: &str,
    group: &inference::ModelInstanceGroup,
) -> Result<(), ConfigError> {
    let inference::ModelInstanceGroup {
        // read below
        name,
        kind: _,
        count: _,
        gpus: _,
        passive: _,
        rate_limiter,
        secondary_devices,
        profile,
        host_policy,
    } = group;
    if !profile.is_empty() {
        let reason = format!(
            "instance group {name} of model {} and platform {} specifies profile field which is only supported for \
             TensorRT models",
            review.model, review.platform
        );
        let field = format!("{path}.profile");
        return Err(ConfigError::invalid(review.model, field, reason));
    }
    if let Some(inference::ModelRateLimiter {
        resources,
        // read below
        priority: _,
    }) = rate_limiter
    {
        let field = format!("{path}.rate_limiter.resources");
        for inference::model_rate_limiter::Resource {
            name,
            // read below
            global: _,
            count: _,
        } in resources
        {
            let same = resources.iter().filter(|other| other.name == *name);
            let reason = match (name.as_str(), same.count()) {
                ("", _) => "has no name, expected one".to_owned(),
                (_, 1) => continue,
                (name, _) => format!("names resource `{name}` more than once"),
            };
            return Err(ConfigError::invalid(
                review.model,
                field,
                format!(
                    "a resource of instance group {} of model {} {reason}",
                    group.name, review.model
                ),
            ));
        }
        let has_effect = review.limits_rate || resources.is_empty();
        review.no_effect(!has_effect, field, NO_RATE_LIMIT);
    }
    review.unsupported(
        !host_policy.is_empty(),
        format!("{path}.host_policy"),
        "remove it: `taskset` or `numactl` binds the whole server to cores",
    )?;
    let has_devices = !secondary_devices.is_empty();
    let field = format!("{path}.secondary_devices");
    if review.gpu_as_cpu {
        review.no_gpu(has_devices, field);
    } else {
        review.no_effect(has_devices, field, TENSORRT_ONLY);
    }
    Ok(())
}

/// Fills in defaults and refuses what Triton refuses on a machine without GPUs. With `gpu_as_cpu`, groups on GPUs
/// become groups on the CPU instead, and each such setting gets a notice.
///
/// The default count depends on the backend, so `proto.name` and `proto.backend` must be set before.
pub(crate) fn read(
    proto: &mut inference::ModelConfig,
    context: &ConfigContext<'_>,
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
    // The number of instances is nobody's to configure then, and a client that sends the configuration back does not.
    let is_live = live::is_wanted(proto);
    let mut typed = Vec::with_capacity(proto.instance_group.len());
    for (index, group) in proto.instance_group.iter_mut().enumerate() {
        if group.name.is_empty() {
            group.name = format!("{model}_{index}");
        }
        if context.gpu_as_cpu {
            put_on_cpu(index, group, notices);
        }
        if group.kind == Kind::Auto as i32 && !context.has_devices {
            group.set_kind(Kind::Cpu);
        }
        let place = (index, is_live);
        let mut read = read_group(&model, &proto.backend, place, group)?;
        if !context.limits_rate {
            read.resources.clear();
        }
        typed.push(read);
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

/// Moves a group from GPUs to the CPU.
fn put_on_cpu(index: usize, group: &mut inference::ModelInstanceGroup, notices: &mut Vec<Notice>) {
    if group.kind == Kind::Gpu as i32 {
        notices.push(Notice::about_gpus(format!("instance_group[{index}].kind")));
        group.set_kind(Kind::Cpu);
    }
    if !group.gpus.is_empty() {
        notices.push(Notice::about_gpus(format!("instance_group[{index}].gpus")));
        group.gpus.clear();
    }
}

fn read_group(
    model: &str,
    backend: &str,
    (index, is_live): (usize, bool),
    group: &mut inference::ModelInstanceGroup,
) -> Result<InstanceGroup, ConfigError> {
    let (kind, proto_kind) = match Kind::try_from(group.kind) {
        Ok(Kind::Auto) => (InstanceKind::Auto, Kind::Auto),
        Ok(Kind::Cpu) => (InstanceKind::Cpu, Kind::Cpu),
        Ok(Kind::Model) => (InstanceKind::Model, Kind::Model),
        Ok(Kind::Gpu) => {
            let text = format!(
                "has kind KIND_GPU but no GPUs are available\n{}",
                on_cpu("write `kind: KIND_CPU`")
            );
            return Err(refusal(model, index, group, "kind", &text));
        }
        Err(_) => {
            let text = format!("has unknown kind {}", group.kind);
            return Err(refusal(model, index, group, "kind", &text));
        }
    };
    if !group.gpus.is_empty() {
        let text = format!(
            "has kind {} but specifies one or more GPUs\n{}",
            proto_kind.as_str_name(),
            on_cpu("remove `gpus`")
        );
        return Err(refusal(model, index, group, "gpus", &text));
    }
    if !(0..=MAX_INSTANCES).contains(&group.count) {
        let text = format!(
            "has count {}, expected an integer from 0 (default) to {MAX_INSTANCES}",
            group.count
        );
        return Err(refusal(model, index, group, "count", &text));
    }
    let runs_on_ort = kind != InstanceKind::Model && backend == backends::ONNXRUNTIME;
    let count = match group.count {
        0 if runs_on_ort => 2,
        0 => 1,
        count => count,
    };
    if !is_live {
        group.count = count;
    }
    group.set_kind(proto_kind);
    Ok(InstanceGroup {
        name: group.name.clone(),
        count: count.unsigned_abs(),
        kind,
        passive: group.passive,
        // As in Triton, 0 means 1.
        priority: group
            .rate_limiter
            .as_ref()
            .map_or(1, |limiter| limiter.priority.max(1)),
        resources: resources(group),
    })
}

fn resources(group: &inference::ModelInstanceGroup) -> Vec<ResourceNeed> {
    let limiter = group.rate_limiter.iter();
    let resources = limiter.flat_map(|limiter| &limiter.resources);
    resources
        .map(|resource| ResourceNeed {
            name: resource.name.clone(),
            global: resource.global,
            count: resource.count,
        })
        .collect()
}

/// `instance group <name> of model <model> <text>`, as Triton says it.
fn refusal(
    model: &str,
    index: usize,
    group: &inference::ModelInstanceGroup,
    field: &str,
    text: &str,
) -> ConfigError {
    ConfigError::invalid(
        model,
        format!("instance_group[{index}].{field}"),
        format!("instance group {} of model {model} {text}", group.name),
    )
}

/// The hint that says how to serve a group of GPUs on the CPU.
fn on_cpu(edit: &str) -> String {
    format!(
        "{edit}, or start with `--gpu-as-cpu`, which serves the groups of every model on the CPU"
    )
}

#[cfg(test)]
mod tests {
    use skep_types::ModelName;

    use super::{InstanceKind, ResourceNeed, read};
    use crate::{ConfigContext, ModelConfig, parse_pbtxt};

    fn model() -> ModelName {
        ModelName::new("m").expect("a name")
    }

    const fn context(model: &ModelName) -> ConfigContext<'_> {
        ConfigContext::new(model)
    }

    fn groups(backend: &str, text: &str) -> Result<String, String> {
        let text = format!("name: 'm' backend: '{backend}' {text}");
        let mut config = parse_pbtxt(text.as_bytes(), "c").expect("parses");
        let typed = read(&mut config, &context(&model()), &mut Vec::new())
            .map_err(|error| error.to_string())?;
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
    fn groups_without_a_kind_are_placed_by_a_server_with_devices() {
        let text = "name: 'm' backend: 'mock' instance_group [ { }, { kind: KIND_CPU }, { kind: KIND_AUTO } ]";
        let none = "name: 'm' backend: 'mock'";
        let (auto, cpu) = (InstanceKind::Auto, InstanceKind::Cpu);
        for (text, has_devices, expected) in [
            (text, true, vec![auto, cpu, auto]),
            (none, true, vec![auto]),
            (text, false, vec![cpu; 3]),
            (none, false, vec![cpu]),
        ] {
            let mut config = parse_pbtxt(text.as_bytes(), "c").expect("parses");
            let model = model();
            let context = ConfigContext {
                has_devices,
                ..context(&model)
            };
            let groups = read(&mut config, &context, &mut Vec::new()).expect("valid");
            let kinds: Vec<InstanceKind> = groups.iter().map(|group| group.kind).collect();
            assert_eq!(kinds, expected, "{text}");
            // A client that sends the configuration back changes nothing.
            let again = read(&mut config, &context, &mut Vec::new()).expect("valid");
            assert_eq!(again, groups);
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
    fn gpu_as_cpu_moves_groups_of_gpus_to_the_cpu() {
        let text = "name: 'm' backend: 'onnxruntime' instance_group [
            { kind: KIND_GPU gpus: [ 0, 1 ] }, { count: 3 kind: KIND_GPU }, { kind: KIND_MODEL gpus: 0 }, { gpus: 0 }, {} ]";
        let mut config = parse_pbtxt(text.as_bytes(), "c").expect("parses");
        let mut notices = Vec::new();
        let model = model();
        let context = ConfigContext {
            gpu_as_cpu: true,
            ..context(&model)
        };
        read(&mut config, &context, &mut notices).expect("valid");
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
    fn the_instances_of_all_groups_together_are_limited() {
        assert!(groups("mock", &"instance_group { count: 512 } ".repeat(2)).is_ok());
        assert_eq!(
            groups("mock", &"instance_group { count: 512 } ".repeat(3)),
            Err("the instance groups of model m have 1536 instances together, expected at most 1024".to_owned())
        );
    }

    /// The resources of the only group, and the notices, of a server that limits executions by resources or does not.
    fn resources(
        text: &str,
        limits_rate: bool,
    ) -> Result<(Vec<ResourceNeed>, Vec<String>), String> {
        let text = format!(
            "backend: 'mock' input {{ name: 'x' data_type: TYPE_FP32 dims: 1 }} output {{ name: 'y' data_type: TYPE_FP32 dims: 1 }}
             instance_group {{ rate_limiter {{ {text} }} }}"
        );
        let config = parse_pbtxt(text.as_bytes(), "c").expect("parses");
        let model = model();
        let context = ConfigContext {
            limits_rate,
            ..context(&model)
        };
        let config =
            ModelConfig::from_proto(config, &context).map_err(|error| error.to_string())?;
        let notices = config.notices().iter().map(ToString::to_string);
        Ok((
            config.instance_groups()[0].resources.clone(),
            notices.collect(),
        ))
    }

    #[test]
    fn resources_count_if_the_server_limits_executions_by_them() {
        let text = "resources [ { name: 'R1' count: 4 }, { name: 'R2' global: true count: 2 } ] priority: 2";
        let need = |name: &str, global, count| ResourceNeed {
            name: name.to_owned(),
            global,
            count,
        };
        let both = vec![need("R1", false, 4), need("R2", true, 2)];
        assert_eq!(resources(text, true), Ok((both, Vec::new())));
        let (none, notices) = resources(text, false).expect("valid");
        assert!(none.is_empty());
        assert_eq!(notices.len(), 1, "{notices:?}");
        let expected = "`instance_group[0].rate_limiter.resources`: no effect: executions do not wait for resources";
        assert!(notices[0].starts_with(expected), "{notices:?}");
        assert!(
            notices[0].contains("--rate-limit=execution_count"),
            "{notices:?}"
        );
        assert_eq!(
            resources("priority: 2", false),
            Ok((Vec::new(), Vec::new()))
        );
    }

    #[test]
    fn resources_without_a_name_or_named_twice_are_refused() {
        let twice = "resources [ { name: 'R' count: 1 }, { name: 'R' global: true count: 1 } ]";
        for limits_rate in [true, false] {
            let error = resources(twice, limits_rate).expect_err("twice");
            assert!(
                error.contains("names resource `R` more than once"),
                "{error}"
            );
            let error = resources("resources { count: 1 }", limits_rate).expect_err("no name");
            assert!(error.contains("has no name"), "{error}");
        }
    }
}
