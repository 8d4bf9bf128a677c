//! Live configurations: models whose instances, threads and batches follow their rate.
//!
//! [`skep_placer::configuration`] decides, twice a second. A change is a call of the management queue, like one of
//! instances: new instances come up first, then those that are not wanted any more finish what they run and leave. The
//! cap on batches changes at once.

use std::time::Duration;

use skep_placer::configuration::{
    LatencyProfile, PresentRun, RateWatch, RunConfiguration, RunDecision, decide,
};
use skep_types::{ModelVersion, Time};

use super::{
    DecisionKind,
    scaling::{ANSWER_TIME, ScaleOrder, ScalePlace},
};
use crate::{
    clock,
    loading::run_terms,
    models::management::ManagementCall,
    serving::{LoadedVersion, responder::RunShape},
};

/// How a model runs, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct RunReport {
    /// The configuration that it has.
    pub configuration: RunConfiguration,
    /// For how long, at the last look.
    pub age: Duration,
    /// The inferences a second that it is planned for.
    pub rate: f64,
    /// What was decided at the last look.
    pub decision: RunDecision,
}

/// Watches one version of a model with a live configuration.
#[derive(Debug, Default)]
pub(super) struct LiveWatch {
    rate: RateWatch,
    present: Option<PresentRun>,
    /// The configuration that was asked for, and when.
    asked: Option<(RunConfiguration, Time)>,
    /// Whether inferences came lately.
    pub(super) is_active: bool,
}

impl LiveWatch {
    /// Looks at a version that shares the cores with others of its kind: so many, itself included.
    pub(super) fn look(
        &mut self,
        place: &ScalePlace<'_>,
        version: ModelVersion,
        loaded: &LoadedVersion,
        profile: &LatencyProfile,
        sharing: usize,
    ) {
        let now = clock::now();
        let arrived = loaded.responder.statistics().inferences() + loaded.pending() as u64;
        let rate = self.rate.observe(now, arrived).unwrap_or(0.0);
        self.is_active = rate > 0.0;
        let Some(own) = loaded.responder.run() else {
            return;
        };
        let present = match self.present {
            Some(present) if present.configuration == own => present,
            _ => PresentRun {
                configuration: own,
                since: now,
            },
        };
        self.present = Some(present);
        let options = &place.runtime.options.load;
        let terms = run_terms(loaded.config(), options, rate, sharing);
        let Some(decision) = decide(profile, &terms, Some(present), now) else {
            return;
        };
        let chosen = decision.configuration;
        let why = decision.why.clone();
        place.show(RunReport {
            configuration: own,
            age: now.since(present.since),
            rate,
            decision,
        });
        let is_asked = self
            .asked
            .is_some_and(|(asked, at)| asked == chosen && now.since(at) < ANSWER_TIME);
        if chosen == own || is_asked {
            return;
        }
        self.asked = Some((chosen, now));
        // With other threads all instances are new, and the old ones leave after that.
        let more = match chosen.threads == own.threads {
            true => chosen.instances.saturating_sub(own.instances),
            false => chosen.instances,
        };
        if !place.has_budget(more) {
            let text = format!("{why}; it stays at {own}: `--memory-budget` has no room");
            place.note(DecisionKind::Configure, &text);
            return;
        }
        place.note(DecisionKind::Configure, &format!("{why} (before: {own})"));
        let order = ScaleOrder {
            id: place.id.clone(),
            version,
            shape: RunShape::from(chosen),
        };
        // Refused only by a stop.
        drop(place.runtime.manage_later(ManagementCall::Scale(order)));
    }
}
