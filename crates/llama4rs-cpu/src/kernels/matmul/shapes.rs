//! Choosing among the shapes that a brick is compiled for.

/// Runs a brick of `rows` rows and as many panels as the first line that fits
/// says; `left` panels are there. Gives the number of panels done.
///
/// `$r` and `$p` stand for the rows and panels in the call.
macro_rules! shapes {
    ($rows:expr, $left:expr, $r:ident, $p:ident, $call:expr, {
        $($($n:literal)|+ x $panels:literal if $fits:expr;)+
    }) => {
        match $rows {
            $($(
                $n if $left >= $panels && $fits => {
                    const $r: usize = $n;
                    const $p: usize = $panels;
                    $call;
                    $panels
                }
            )+)+
            rows => unreachable!("no tile of {rows} rows"),
        }
    };
}

pub(super) use shapes;
