//! Which instances of a version there are, and which a configuration asks for.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard},
};

use skep_config::{InstanceGroup, InstanceKind, ResourceNeed};
use skep_host::lock;
use skep_scheduler::InstanceId;

use super::copies::CopyTerms;

/// A running instance.
#[derive(Debug, Clone)]
pub(super) struct InstanceHandle {
    /// What it was started as.
    pub(super) wanted: WantedInstance,
    pub(super) id: InstanceId,
    /// The index of the device that it runs on; `None` for all CPUs.
    pub(super) device: Option<usize>,
}

/// An instance that a configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct WantedInstance {
    /// Triton's name for it, `<group>_<index>`.
    pub(super) name: String,
    pub(super) passive: bool,
    /// Whether it is packed onto a device, if the node has some.
    pub(super) is_auto: bool,
    /// Its priority among instances that want the same resources.
    pub(super) priority: u32,
    /// What each of its executions needs.
    pub(super) resources: Vec<ResourceNeed>,
    /// Threads of a run; `None` for what the configuration says, or its default.
    pub(super) threads: Option<NonZeroUsize>,
}

impl InstanceHandle {
    /// What the copy of the model that it runs on was loaded for.
    pub(super) const fn terms(&self) -> CopyTerms {
        CopyTerms {
            device: self.device,
            threads: self.wanted.threads,
        }
    }
}

/// The instances whose threads have not ended.
#[derive(Default)]
pub(super) struct InstanceList(Mutex<Vec<InstanceHandle>>);

impl InstanceList {
    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<InstanceHandle>> {
        lock(&self.0)
    }
}

/// The active instances of these groups, as configured.
pub(super) fn active_count(groups: &[InstanceGroup]) -> u32 {
    let active = groups.iter().filter(|group| !group.passive);
    active.map(|group| group.count).sum()
}

/// The instances of these groups, with so many active ones: the last groups have fewer than configured, or the first one
/// has more. A model whose groups are all passive has no other instances.
pub(super) fn wanted_instances(
    groups: &[InstanceGroup],
    active: u32,
    threads: Option<NonZeroUsize>,
) -> Vec<WantedInstance> {
    let mut more = active.saturating_sub(active_count(groups));
    let mut left = active;
    let mut wanted = Vec::new();
    for group in groups {
        let count = match group.passive {
            true => group.count,
            false => {
                let count = (group.count + std::mem::take(&mut more)).min(left);
                left -= count;
                count
            }
        };
        wanted.extend((0..count).map(|index| WantedInstance {
            name: format!("{}_{index}", group.name),
            passive: group.passive,
            is_auto: group.kind == InstanceKind::Auto,
            priority: group.priority,
            resources: group.resources.clone(),
            threads,
        }));
    }
    wanted
}

/// The wanted instances that are missing, and the existing ones that are not wanted. Groups may share a name.
pub(super) fn difference(
    members: &[InstanceHandle],
    wanted: Vec<WantedInstance>,
) -> (Vec<WantedInstance>, Vec<InstanceHandle>) {
    let mut there: HashMap<&WantedInstance, Vec<&InstanceHandle>> = HashMap::new();
    for member in members {
        there.entry(&member.wanted).or_default().push(member);
    }
    let missing = wanted
        .into_iter()
        .filter(|wanted| there.get_mut(wanted).and_then(Vec::pop).is_none())
        .collect();
    let leaving = there.into_values().flatten().cloned().collect();
    (missing, leaving)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, passive: bool) -> WantedInstance {
        WantedInstance {
            name: name.to_owned(),
            passive,
            is_auto: false,
            priority: 1,
            resources: Vec::new(),
            threads: None,
        }
    }

    fn member(number: u32, name: &str, passive: bool) -> InstanceHandle {
        InstanceHandle {
            wanted: one(name, passive),
            id: InstanceId(number),
            device: None,
        }
    }

    fn wanted(names: &[&str]) -> Vec<WantedInstance> {
        names.iter().map(|name| one(name, false)).collect()
    }

    #[test]
    fn the_number_of_active_instances_changes_at_the_ends() {
        let group = |name: &str, count, passive| InstanceGroup {
            name: name.to_owned(),
            count,
            kind: InstanceKind::Cpu,
            passive,
            priority: 1,
            resources: Vec::new(),
        };
        let groups = [
            group("a", 2, false),
            group("p", 1, true),
            group("b", 1, false),
        ];
        assert_eq!(active_count(&groups), 3);
        let names = |active| {
            let wanted = wanted_instances(&groups, active, None);
            let names: Vec<String> = wanted.into_iter().map(|one| one.name).collect();
            names.join(" ")
        };
        assert_eq!(names(3), "a_0 a_1 p_0 b_0");
        assert_eq!(names(5), "a_0 a_1 a_2 a_3 p_0 b_0");
        assert_eq!(names(2), "a_0 a_1 p_0");
        assert_eq!(names(1), "a_0 p_0");
    }

    #[test]
    fn only_missing_instances_start_and_only_surplus_ones_leave() {
        let there = [
            member(0, "g_0", false),
            member(1, "g_1", false),
            member(2, "p_0", true),
        ];
        let check = |want: &[&str], missing: &[&str], leaving: &[u32]| {
            let (got, mut left) = difference(&there, wanted(want));
            left.sort_by_key(|member| member.id);
            let left: Vec<u32> = left.iter().map(|member| member.id.0).collect();
            assert_eq!((got, &left[..]), (wanted(missing), leaving), "{want:?}");
        };
        check(&["g_0", "g_1", "g_2"], &["g_2"], &[2]);
        check(&["g_0"], &[], &[1, 2]);
        // Two groups with the same name.
        check(&["g_0", "g_0"], &["g_0"], &[1, 2]);
        // A passive instance does not count for an active one.
        check(&["p_0"], &["p_0"], &[0, 1, 2]);
        // Another number of threads is another instance.
        let threads = NonZeroUsize::new(2);
        let changed = WantedInstance {
            threads,
            ..one("g_0", false)
        };
        let (missing, leaving) = difference(&there[..1], vec![changed.clone()]);
        assert_eq!((missing, leaving.len()), (vec![changed], 1));
    }
}
