//! A profile as a page: where the time of a start goes, what is shared, and what cores, instances and batches bring.

use std::fmt::Write;

use skep_perf::profile::{MeasuredConfiguration, ModelProfile, ProfileFile, StartTimes};

use crate::{axis::escaped, origin, units::human};

const WRITES: &str = "a string takes all";

const STYLE: &str = "body{margin:0 auto;padding:1.5rem 1rem 3rem;max-width:64rem;font:1rem/1.5 system-ui,sans-serif;\
color-scheme:light dark}h2{margin:2.5rem 0 .25rem}h3{margin:1.5rem 0 .25rem;font-size:1rem}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{padding:.15rem .75rem .15rem 0;text-align:right;white-space:nowrap}th{font-weight:600;border-bottom:1px solid #8886}\
tr.first td{border-top:1px solid #8884}td.bar{width:9rem;padding-left:0}\
td.bar i{display:inline-block;height:.7rem;background:#0072b2;vertical-align:middle}td.late i{background:#e69f00}\
td.held i{background:#009e73}.stack{display:flex;height:1.4rem;margin:.25rem 0;max-width:44rem}\
.stack i{display:block}.key i{display:inline-block;width:.8rem;height:.8rem;margin:0 .4rem 0 1rem;vertical-align:-.05rem}\
.key i:first-child{margin-left:0}.soft{opacity:.7;font-size:.875rem}.table{overflow-x:auto}";

/// Colours after Okabe and Ito, which people with any vision tell apart.
const COLOURS: [&str; 3] = ["#56b4e9", "#0072b2", "#e69f00"];

pub(super) fn html(file: &ProfileFile, command: &str) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Profiles</title>\n<style>{STYLE}</style>\n<h1>Profiles</h1>\n<p class=\"soft\">{}; {} with {} cores</p>\n",
        escaped(&origin::line(command)),
        escaped(&file.machine.processor),
        file.machine.cores
    );
    for profile in &file.models {
        model(&mut page, profile);
    }
    page.push_str("</html>\n");
    page
}

fn model(page: &mut String, profile: &ModelProfile) {
    let (name, request) = (escaped(&profile.name), escaped(&profile.request));
    writeln!(
        page,
        "<h2>{name}</h2>\n<p class=\"soft\">A request: {request}</p>"
    )
    .expect(WRITES);
    if let Some(times) = profile.start {
        start(page, times);
    }
    memory(page, profile);
    if !profile.configurations.is_empty() {
        configurations(page, &profile.configurations);
    }
}

fn start(page: &mut String, times: StartTimes) {
    let parts = [
        ("process", times.process_ms),
        ("load", times.load_ms),
        ("first inference", times.first_inference_ms),
    ];
    let all: f64 = parts.iter().map(|(_, millis)| millis).sum();
    writeln!(page, "<h3>A start takes {all:.0} ms</h3>").expect(WRITES);
    let shown = parts.map(|(what, millis)| (what, millis / all, format!("{millis:.1} ms")));
    stack(page, &shown);
    writeln!(
        page,
        "<p class=\"soft\">A later inference takes {:.1} ms. A model that comes back takes the load and the first inference.</p>",
        times.inference_ms
    )
    .expect(WRITES);
}

/// What instances hold with the least of everything: one core, one instance, batch 1.
fn memory(page: &mut String, profile: &ModelProfile) {
    let Some(least) = profile.configurations.first() else {
        return;
    };
    let (shared, private) = (profile.tensor_bytes(), least.private_bytes);
    let all = shared.saturating_add(private);
    writeln!(page, "<h3>One instance holds {}</h3>", human(all)).expect(WRITES);
    let share = |bytes: u64| bytes as f64 / all.max(1) as f64;
    stack(
        page,
        &[
            ("weights that instances share", share(shared), human(shared)),
            ("its own", share(private), human(private)),
        ],
    );
    if shared > 0 {
        let ten = shared.saturating_add(private.saturating_mul(10));
        let apart = all.saturating_mul(10);
        writeln!(
            page,
            "<p class=\"soft\">Ten such processes on a node would hold {} with one copy of the weights, and {} with one each.</p>",
            human(ten),
            human(apart)
        )
        .expect(WRITES);
    }
}

/// Parts of a whole in one bar, with a key below.
fn stack(page: &mut String, parts: &[(&str, f64, String)]) {
    page.push_str("<div class=\"stack\">");
    for ((_, share, _), colour) in parts.iter().zip(COLOURS) {
        let percent = 100.0 * share;
        write!(
            page,
            "<i style=\"width:{percent:.1}%;background:{colour}\"></i>"
        )
        .expect(WRITES);
    }
    page.push_str("</div>\n<p class=\"key\">");
    for ((what, _, text), colour) in parts.iter().zip(COLOURS) {
        write!(page, "<i style=\"background:{colour}\"></i>{what} {text}").expect(WRITES);
    }
    page.push_str("</p>\n");
}

fn configurations(page: &mut String, all: &[MeasuredConfiguration]) {
    let most = |of: fn(&MeasuredConfiguration) -> f64| all.iter().map(of).fold(0.0, f64::max);
    let rate = |one: &MeasuredConfiguration| one.requests_per_second;
    let late = |one: &MeasuredConfiguration| one.latency.p95_ms;
    let held = |one: &MeasuredConfiguration| one.private_bytes as f64;
    let (most_rate, most_late, most_held) = (most(rate), most(late), most(held));
    page.push_str(
        "<h3>What cores, instances and batches bring</h3>\n<div class=\"table\"><table>\n\
         <tr><th>cores<th>instances<th>threads<th>batch<th>requests/s<th><th>p50 ms<th>p95 ms<th><th>p99 ms<th>private<th></tr>\n",
    );
    let mut before = None;
    for one in all {
        let group = (one.cpus, one.instances);
        let class = match before.replace(group) == Some(group) {
            true => "",
            false => " class=\"first\"",
        };
        writeln!(
            page,
            "<tr{class}><td>{}<td>{}<td>{}<td>{}<td>{:.1}{}<td>{:.2}<td>{:.2}{}<td>{:.2}<td>{}{}</tr>",
            one.cpus,
            one.instances,
            one.threads,
            one.batch,
            one.requests_per_second,
            bar("bar", rate(one) / most_rate),
            one.latency.p50_ms,
            one.latency.p95_ms,
            bar("bar late", late(one) / most_late),
            one.latency.p99_ms,
            human(one.private_bytes),
            bar("bar held", held(one) / most_held),
        )
        .expect(WRITES);
    }
    page.push_str("</table></div>\n");
}

fn bar(class: &str, share: f64) -> String {
    // Of nothing at all there is no share.
    let percent = if share.is_finite() {
        100.0 * share
    } else {
        0.0
    };
    format!("<td class=\"{class}\" style=\"text-align:left\"><i style=\"width:{percent:.0}%\"></i>")
}
