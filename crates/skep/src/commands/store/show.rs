//! What a store says of itself, for people and for machines.

use std::process::ExitCode;

use serde_json::{Map, Value, json};
use skep_store::{Stat, Store, StoredTensor, Tenant};

use crate::{
    output::{OutputError, outln},
    units::human,
};

/// Figures by tenant, and together.
pub(super) fn stat(store: &Store, tenants: &[Tenant], json: bool) -> anyhow::Result<ExitCode> {
    let stats = tenants.iter().map(|tenant| store.stat(tenant));
    let stats = stats.collect::<Result<Vec<Stat>, _>>()?;
    let total: Stat = stats.iter().copied().sum();
    if json {
        let by_tenant: Map<String, Value> = tenants
            .iter()
            .zip(&stats)
            .map(|(tenant, stat)| (tenant.to_string(), figures(stat)))
            .collect();
        let document = json!({"tenants": by_tenant, "total": figures(&total)});
        outln!("{}", serde_json::to_string_pretty(&document)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows: Vec<(String, &Stat)> =
        tenants.iter().map(Tenant::to_string).zip(&stats).collect();
    if rows.len() > 1 {
        rows.push(("total".to_owned(), &total));
    }
    print_table(
        &[
            "tenant",
            "tensors",
            "segments",
            "stored",
            "padding",
            "leased",
            "saved",
            "leases",
            "holders",
            "hits",
            "misses",
            "waits",
            "waited",
            "reclaimed",
        ],
        rows.into_iter().map(|(name, stat)| {
            let saved = stat.bytes_saved();
            let sign = if saved < 0 { "-" } else { "" };
            vec![
                name,
                stat.tensors.to_string(),
                stat.segments.to_string(),
                human(stat.bytes_stored),
                human(stat.bytes_padding),
                human(stat.bytes_leased),
                format!("{sign}{}", human(saved.unsigned_abs())),
                stat.leases.to_string(),
                stat.holders.to_string(),
                stat.hits.to_string(),
                stat.misses.to_string(),
                stat.waits.to_string(),
                format!("{:.2} s", stat.wait_ns as f64 / 1e9),
                stat.reclaimed.to_string(),
            ]
        }),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn figures(stat: &Stat) -> Value {
    json!({
        "segments": stat.segments,
        "tensors": stat.tensors,
        "bytes_stored": stat.bytes_stored,
        "bytes_padding": stat.bytes_padding,
        "bytes_leased": stat.bytes_leased,
        "bytes_saved": stat.bytes_saved(),
        "leases": stat.leases,
        "holders": stat.holders,
        "hits": stat.hits,
        "misses": stat.misses,
        "waits": stat.waits,
        "wait_ns": stat.wait_ns,
        "reclaimed": stat.reclaimed,
    })
}

/// Every tensor, by tenant.
pub(super) fn ls(store: &Store, tenants: &[Tenant], json: bool) -> anyhow::Result<ExitCode> {
    let mut rows: Vec<(String, StoredTensor)> = Vec::new();
    for tenant in tenants {
        let tensors = store.ls(tenant)?;
        rows.extend(
            tensors
                .into_iter()
                .map(|tensor| (tenant.to_string(), tensor)),
        );
    }
    if json {
        let tensors: Vec<Value> = rows
            .iter()
            .map(|(tenant, one)| listed(tenant, one))
            .collect();
        outln!("{}", serde_json::to_string_pretty(&tensors)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    print_table(
        &["tenant", "digest", "tensor", "bytes", "leases", "idle"],
        rows.into_iter().map(|(tenant, tensor)| {
            let digest = tensor.digest.to_string();
            let idle = tensor
                .idle
                .map(|idle| format!("{:.1} s", idle.as_secs_f64()));
            vec![
                tenant,
                // Enough to tell one from another; all of it is in the JSON.
                digest.chars().take(16).collect(),
                tensor.description.to_string(),
                human(tensor.length),
                tensor.leases.to_string(),
                idle.unwrap_or_else(|| "-".to_owned()),
            ]
        }),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn listed(tenant: &str, tensor: &StoredTensor) -> Value {
    json!({
        "tenant": tenant,
        "digest": tensor.digest.to_string(),
        "datatype": tensor.description.datatype.protocol_name(),
        "dims": tensor.description.dims,
        "layout": tensor.description.layout,
        "bytes": tensor.length,
        "leases": tensor.leases,
        "idle_seconds": tensor.idle.map(|idle| idle.as_secs_f64()),
    })
}

/// What went, by tenant.
pub(super) fn gc(store: &Store, tenants: &[Tenant], json: bool) -> anyhow::Result<ExitCode> {
    let mut freed = Vec::new();
    for tenant in tenants {
        freed.push((tenant.to_string(), store.gc(tenant)?));
    }
    if json {
        let by_tenant: Map<String, Value> = freed
            .into_iter()
            .map(|(tenant, bytes)| (tenant, json!({"bytes_freed": bytes})))
            .collect();
        outln!(
            "{}",
            serde_json::to_string_pretty(&json!({"tenants": by_tenant}))?
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    for (tenant, bytes) in freed {
        outln!("tenant `{tenant}`: {} freed", human(bytes))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Columns as wide as what is in them.
fn print_table(
    heading: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) -> Result<(), OutputError> {
    let heading = heading.iter().map(|name| (*name).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}", width = *width))
            .collect();
        outln!("{}", line.join("  ").trim_end())?;
    }
    Ok(())
}
