//! Choosing among the shapes that a brick is compiled for.

/// Runs bricks for `rows` rows and most of `left` panels; gives the number of
/// panels done. The first line that fits says how many panels a brick has.
///
/// `$r` and `$p` stand for the rows and panels of the brick in the call; its
/// panels are `left / $p` apart from each other.
macro_rules! shapes {
    ($rows:expr, $left:expr, |$r:ident, $p:ident, $start:ident, $apart:ident| $call:expr, {
        $($($n:literal)|+ x $panels:literal if $fits:expr;)+
    }) => {
        match $rows {
            $($(
                $n if $left >= $panels && $fits => {
                    const $r: usize = $n;
                    const $p: usize = $panels;
                    let $apart = $left / $p;
                    for $start in 0..$apart {
                        $call;
                    }
                    $apart * $p
                }
            )+)+
            rows => unreachable!("no tile of {rows} rows"),
        }
    };
}

pub(super) use shapes;
