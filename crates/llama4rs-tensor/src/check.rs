//! Checks that every backend makes before it touches its device.

use crate::{Error, KvGeometry, KvSpan, PageForm, PageId, Result};

/// Rows and columns of a tensor.
pub type Shape = (usize, usize);

/// An error of `operation` unless `fits`.
pub fn require(
    fits: bool,
    operation: &'static str,
    expected: impl FnOnce() -> String,
    got: impl FnOnce() -> String,
) -> Result<()> {
    if fits {
        Ok(())
    } else {
        Err(Error::shape(operation, expected(), got()))
    }
}

/// An error unless a tensor of shape `found` is `[rows, cols]`.
pub fn require_shape(
    operation: &'static str,
    found: Shape,
    rows: usize,
    cols: usize,
) -> Result<()> {
    let (r, c) = found;
    let expected = || format!("[{rows}, {cols}]");
    require(found == (rows, cols), operation, expected, || format!("[{r}, {c}]"))
}

/// An error unless `cols` are whole heads of `head_dim`.
pub fn require_heads(operation: &'static str, cols: usize, head_dim: usize) -> Result<()> {
    let fits = head_dim > 0 && cols.is_multiple_of(head_dim);
    require(fits, operation, || format!("heads of {head_dim}"), || format!("{cols} columns"))
}

/// An error unless a vector of `len` has one value for each of `cols` columns.
pub fn require_columns(operation: &'static str, cols: usize, len: usize) -> Result<()> {
    require(cols == len, operation, || format!("{len} columns"), || cols.to_string())
}

/// An error unless all of `indices` are below `limit`; `what` names them.
pub fn require_below(
    operation: &'static str,
    what: &str,
    indices: &[u32],
    limit: usize,
) -> Result<()> {
    let beyond = indices.iter().find(|&&index| index as usize >= limit);
    require(
        beyond.is_none(),
        operation,
        || format!("{what} below {limit}"),
        || format!("{beyond:?}"),
    )
}

/// An error unless `len` is a multiple of `unit`.
pub fn require_whole(operation: &'static str, what: &str, len: usize, unit: usize) -> Result<()> {
    let whole = len.checked_rem(unit).map_or(len == 0, |rest| rest == 0);
    require(whole, operation, || format!("a multiple of {unit} {what}"), || len.to_string())
}

/// An error unless `matrix` of `stack` matrices is a single one.
pub fn require_single(operation: &'static str, stack: usize) -> Result<()> {
    let found = || format!("a stack of {stack}");
    require(stack == 1, operation, || "a single matrix".to_owned(), found)
}

/// An error unless the pool has `layer`.
pub fn require_layer(operation: &'static str, geometry: &KvGeometry, layer: usize) -> Result<()> {
    let layers = geometry.num_layers;
    let fits = layer < layers;
    require(fits, operation, || format!("a layer below {layers}"), || layer.to_string())
}

/// An error unless each span has its pages and no row is in two spans; `has` says
/// whether a page is there.
pub fn require_spans(
    geometry: &KvGeometry,
    rows: usize,
    spans: &[KvSpan],
    has: impl Fn(PageId) -> bool,
) -> Result<()> {
    let mut ranges: Vec<_> = spans.iter().map(|span| span.rows.clone()).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let apart = ranges.windows(2).all(|pair| pair[0].end <= pair[1].start);
    let inside = ranges.iter().all(|range| range.start <= range.end && range.end <= rows);
    require(
        apart && inside,
        "attend",
        || format!("spans apart from each other within {rows} rows"),
        || format!("{ranges:?}"),
    )?;
    for KvSpan { rows: range, pages, visible } in spans {
        if range.is_empty() {
            continue;
        }
        let tokens = visible.checked_add(range.len() - 1);
        let held = pages.len().saturating_mul(geometry.page_tokens);
        require(
            *visible > 0 && tokens.is_some_and(|tokens| tokens <= held),
            "attend",
            || format!("1 to {held} visible tokens in {} pages", pages.len()),
            || format!("{visible} for the first of {} rows", range.len()),
        )?;
        for (index, &page) in pages.iter().enumerate() {
            require(has(page), "attend", || "reserved pages".to_owned(), || format!("{page:?}"))?;
            let end = (index + 1) * geometry.page_tokens;
            require(
                page.form() == PageForm::Exact || *visible >= end,
                "attend",
                || format!("rows that see all {end} tokens up to a sealed page"),
                || format!("{visible} for the first"),
            )?;
        }
    }
    Ok(())
}
