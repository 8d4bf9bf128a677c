//! The documentation of this binary, as pages under `/docs/`: for machines without internet access.

use std::sync::LazyLock;

use axum::{
    extract::Path,
    http::Uri,
    response::{Html, IntoResponse, Redirect, Response},
};
use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};

/// A page's name in addresses, and its text in Markdown.
type PageSource = (&'static str, &'static str);

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../../docs/", $name)))),*]
    };
}

/// All pages of `docs/`.
const SOURCES: &[PageSource] = &sources![
    "allocators.md",
    "backends.md",
    "batching.md",
    "cluster.md",
    "command-line.md",
    "devices.md",
    "glossary.md",
    "guides/capacity.md",
    "live-configuration.md",
    "memory-planning.md",
    "metrics.md",
    "model-configuration.md",
    "model-parameters.md",
    "model-repository.md",
    "monitoring.md",
    "operators.md",
    "profiles.md",
    "protocol.md",
    "README.md",
    "reports/allocators.md",
    "residency.md",
    "ensembles.md",
    "response-cache.md",
    "sandboxes.md",
    "security.md",
    "sequences.md",
    "simulator.md",
    "tensor-store.md",
    "tracing.md",
    "troubleshooting.md",
    "tutorial.md",
    "weights.md",
];

/// The drawings of pages, by their place in `docs/`.
const DRAWINGS: &[PageSource] = &sources![
    "reports/allocators/costs.svg",
    "reports/allocators/over-time.svg",
    "reports/allocators/ratios.svg",
];

const STYLE: &str = "body{margin:0 auto;padding:1.25rem 1rem 3rem;max-width:58rem;font:1rem/1.5 system-ui,sans-serif;\
color-scheme:light dark}pre{overflow-x:auto;padding:.75rem;background:#8882;border-radius:.4rem}\
code{font:.875em/1.5 ui-monospace,Consolas,monospace}table{border-collapse:collapse;display:block;overflow-x:auto}\
td,th{padding:.3rem .75rem .3rem 0;text-align:left;vertical-align:top;border-top:1px solid #8884}";

/// The pages, rendered at the first request for one.
static PAGES: LazyLock<Vec<(&'static str, String)>> = LazyLock::new(|| {
    let pages = SOURCES.iter();
    pages
        .map(|(name, text)| (*name, document(name, &render(name, text))))
        .collect()
});

/// The page that lists the others.
const INDEX: &str = "README.md";

/// The list of pages. Links on it are relative, so its address ends with a slash.
pub(super) async fn index(uri: Uri) -> Response {
    if uri.path().ends_with('/') {
        found(INDEX)
    } else {
        // Relative, so that a proxy may serve everything under a prefix.
        Redirect::permanent("docs/").into_response()
    }
}

pub(super) async fn page(Path(name): Path<String>) -> Response {
    found(&name)
}

fn found(name: &str) -> Response {
    match PAGES.iter().find(|(page, _)| *page == name) {
        Some((_, page)) => Html(page.as_str()).into_response(),
        None => super::reply::not_found(),
    }
}

fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{title}</title>\
         <link rel=\"icon\" href=\"data:,\"><style>{STYLE}</style></head><body>{body}</body></html>"
    )
}

/// Markdown as HTML. Headings get the ids that links to them have on code hosts: lower case, spaces as hyphens. A link to a
/// file that is not served is plain text.
fn render(name: &str, text: &str) -> String {
    let mut is_dead = false;
    let events = Parser::new_ext(text, Options::ENABLE_TABLES).filter(|event| match event {
        Event::Start(Tag::Link { dest_url, .. }) => {
            is_dead = leads_out(name, dest_url);
            !is_dead
        }
        Event::End(TagEnd::Link) => !std::mem::take(&mut is_dead),
        _ => true,
    });
    let events = with_drawings(name, events);
    let with_ids = events.iter().enumerate().map(|(index, event)| match event {
        Event::Start(Tag::Heading { level, .. }) => {
            let words = events[index + 1..]
                .iter()
                .take_while(|event| !matches!(event, Event::End(TagEnd::Heading(_))));
            heading(*level, &words.filter_map(text_of).collect::<String>())
        }
        other => other.clone(),
    });
    let mut page = String::new();
    html::push_html(&mut page, with_ids);
    page
}

/// The events of a page, with its drawings in the place of the links to them.
fn with_drawings<'a>(name: &str, events: impl Iterator<Item = Event<'a>>) -> Vec<Event<'a>> {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut drawn = Vec::new();
    // Within a drawing's description.
    let mut is_described = false;
    for event in events {
        let drawing = match &event {
            Event::Start(Tag::Image { dest_url, .. }) => {
                let place = format!("{folder}/{dest_url}");
                DRAWINGS.iter().find(|(known, _)| *known == place)
            }
            _ => None,
        };
        if let Some((_, drawing)) = drawing {
            is_described = true;
            drawn.push(Event::Html(CowStr::from(*drawing)));
        } else if is_described {
            is_described = !matches!(event, Event::End(TagEnd::Image));
        } else {
            drawn.push(event);
        }
    }
    drawn
}

/// Whether a link leaves the pages: it goes up further than its page lies deep.
fn leads_out(name: &str, target: &str) -> bool {
    let depth = name.matches('/').count();
    let ups = target.split('/').take_while(|part| *part == "..").count();
    ups > depth
}

fn text_of<'a>(event: &'a Event<'_>) -> Option<&'a str> {
    match event {
        Event::Text(text) | Event::Code(text) => Some(text),
        _ => None,
    }
}

fn heading(level: HeadingLevel, words: &str) -> Event<'static> {
    let lower = words.to_lowercase();
    let kept = lower
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    let id: String = kept.collect();
    Event::Start(Tag::Heading {
        level,
        id: Some(CowStr::from(id.replace(' ', "-"))),
        classes: Vec::new(),
        attrs: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// The page and the heading that a link's `target` leads to; `None` if it leads out of these pages.
    fn inner<'a>(from: &str, target: &'a str) -> Option<(String, &'a str)> {
        if target.contains("://") || target.starts_with("data:") || matches!(target, "../" | "./") {
            return None;
        }
        let (page, anchor) = target.split_once('#').unwrap_or((target, ""));
        let mut path: Vec<&str> = from.split('/').collect();
        if !page.is_empty() {
            path.pop();
            for part in page.split('/') {
                match part {
                    ".." => drop(path.pop()),
                    part => path.push(part),
                }
            }
        }
        Some((path.join("/"), anchor))
    }

    /// The pages below a directory, by their paths from it.
    fn pages_in(directory: &Path, prefix: &str) -> BTreeSet<String> {
        let files = fs::read_dir(directory).expect("the documentation");
        let named = files.flat_map(|file| {
            let file = file.expect("a file");
            let name = file.file_name().into_string().expect("text");
            let name = format!("{prefix}{name}");
            match file.path().is_dir() {
                true => pages_in(&file.path(), &format!("{name}/")),
                false => BTreeSet::from([name]),
            }
        });
        named.collect()
    }

    #[test]
    fn every_page_is_served_and_every_link_leads_somewhere() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let served = SOURCES.iter().chain(DRAWINGS);
        let served: BTreeSet<String> = served.map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(pages_in(&directory, ""), served);
        for (name, page) in &*PAGES {
            assert!(
                !page.contains("<img"),
                "{name}: a drawing that is not served"
            );
            for link in page.split("href=\"").skip(1) {
                let target = link.split('"').next().unwrap_or_default();
                let Some((to, anchor)) = inner(name, target) else {
                    continue;
                };
                let found = PAGES.iter().find(|(page, _)| *page == to);
                let (_, text) = found.unwrap_or_else(|| panic!("{name}: no page for `{target}`"));
                let id = format!("id=\"{anchor}\"");
                assert!(
                    anchor.is_empty() || text.contains(&id),
                    "{name}: no heading for `{target}`"
                );
            }
        }
    }

    #[test]
    fn links_out_of_the_pages_are_plain_text() {
        for (name, target, is_out) in [
            ("a.md", "../README.md", true),
            ("a.md", "b.md", false),
            ("guides/a.md", "../b.md", false),
            ("guides/a.md", "../../README.md", true),
        ] {
            assert_eq!(leads_out(name, target), is_out, "{name} {target}");
        }
        assert!(!render("a.md", "[x](../y.md)").contains("href"));
        assert!(render("guides/a.md", "[x](../y.md)").contains("href"));
    }

    #[test]
    fn drawings_are_part_of_their_page() {
        let page = render("reports/a.md", "a ![ratios](allocators/ratios.svg) b");
        assert!(page.starts_with("<p>a <svg "), "{}", &page[..80]);
        assert!(
            page.ends_with("</svg>\n b</p>\n"),
            "the description is left out"
        );
    }

    #[test]
    fn headings_have_the_ids_that_links_use() {
        let page = render(
            "a.md",
            "## What `auto` rehearses, now\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
        );
        assert!(
            page.contains("<h2 id=\"what-auto-rehearses-now\">"),
            "{page}"
        );
        assert!(page.contains("<td>1</td>"), "{page}");
    }
}
