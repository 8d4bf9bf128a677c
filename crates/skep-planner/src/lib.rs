//! Static memory planning: tensors whose sizes and live ranges are known before a run share memory.
//!
//! ```text
//! address ^
//!         |        +-----------+
//!         |  +-----+ c         |        Buffers that are live at one step lie at different addresses.
//!         |  | b   +-----+-----+
//!         |  +-----+     | e   |        The largest load, here that of the step with a, b and c, is what no plan
//!         +--+-----+-----+-----+--+     can beat; a plan that needs no more is proved to be optimal.
//!         |  a           |  d     |
//!         +--------------+--------+--> steps of the run
//! ```
//!
//! A [`Problem`] holds [`Buffer`]s that keep its invariants. [`auto`] plans it and says how good the plan is, with a
//! proof; [`Strategy::ALL`] lists everything else by name, to compare with: TFLite's strategies exactly, in
//! [`objects`] and [`offsets`], and other systems' in [`baselines`]. [`validate`] judges a plan and shares nothing
//! with the planners.
//!
//! ```
//! use skep_planner::{Budget, Buffer, Problem, auto};
//!
//! let problem = Problem::new(vec![
//!     Buffer::new(4, 0, 3),
//!     Buffer::new(4, 3, 9),
//!     Buffer::new(4, 0, 9),
//!     Buffer::new(4, 9, 21),
//!     Buffer::new(4, 0, 21),
//! ])?;
//! let answer = auto(&problem, &Budget::nodes(1_000));
//! assert_eq!((answer.plan.size, answer.lower_bound), (12, 12));
//! assert!(answer.is_optimal());
//! # Ok::<(), skep_planner::ProblemError>(())
//! ```
//!
//! # Pure
//!
//! No clock, no threads, no I/O: the caller decides how long to search ([`Budget`]) and on which threads
//! ([`JobRunner`]). The same nodes give the same plan, on however many threads.
//!
//! # Cost
//!
//! Validation, bounds and planning in the order of time take `n log n` steps, and so do skylines; best fit looks at what
//! a buffer can meet, which is quadratic at worst. Nothing lists all pairs of buffers except what is bounded by name
//! ([`Unavailable::TooLarge`], and the exact search, which leaves larger pieces alone). Everything but `n log n` steps
//! asks the caller every few tens of microseconds whether it should stop, the preparation of searches included.

mod auto;
pub mod baselines;
pub mod bounds;
mod budget;
mod evict;
mod exact;
mod in_place;
mod local;
mod neighbours;
pub mod objects;
pub mod offsets;
mod pieces;
mod plan;
mod problem;
mod splitmix;
mod strategy;
mod timeline;
mod usage_records;
mod validate;

pub use auto::{BoundedPlan, Proof, auto, auto_with};
pub use budget::{Budget, InTurn, JobRunner};
pub use plan::{ObjectPlan, OffsetPlan, Plan};
pub use problem::{Buffer, Problem, ProblemError};
pub use strategy::{Strategy, Unavailable};
pub use timeline::{Span, Timeline};
pub use usage_records::{UsageRecords, UsageRecordsError, shortened_name};
pub use validate::{InvalidPlan, validate, validate_objects, validate_offsets};
