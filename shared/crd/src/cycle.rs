//! Cycles in small directed graphs: dependencies among members, and scopes that nest each other.

/// A cycle in the graph whose node `i` has edges to `edges[i]`, each node once, in the order of the edges.
///
/// Which one, when there are several, depends on the order of nodes and edges alone. Works without recursion, so that
/// a chain of ten thousand does not exhaust the stack.
#[must_use]
pub fn find_cycle(edges: &[Vec<usize>]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }

    let mut marks = vec![Mark::New; edges.len()];
    // The path from the start to where we are, each with the position of its next edge.
    let mut path: Vec<(usize, usize)> = Vec::new();
    for start in 0..edges.len() {
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::Open;
        path.push((start, 0));
        while let Some((node, next)) = path.last_mut() {
            let Some(&target) = edges[*node].get(*next) else {
                marks[*node] = Mark::Done;
                path.pop();
                continue;
            };
            *next += 1;
            match marks[target] {
                Mark::Done => {}
                Mark::New => {
                    marks[target] = Mark::Open;
                    path.push((target, 0));
                }
                Mark::Open => {
                    let first = path
                        .iter()
                        .position(|&(node, _)| node == target)
                        .expect("an open node is on the path");
                    return Some(path[first..].iter().map(|&(node, _)| node).collect());
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(edges: &[&[usize]], expected: Option<&[usize]>) {
        let edges: Vec<Vec<usize>> = edges.iter().map(|targets| targets.to_vec()).collect();
        assert_eq!(find_cycle(&edges).as_deref(), expected);
    }

    #[test]
    fn a_cycle_is_found_where_there_is_one() {
        check(&[], None);
        check(&[&[]], None);
        check(&[&[0]], Some(&[0]));
        check(&[&[1], &[2], &[]], None);
        check(&[&[1, 2], &[3], &[3], &[]], None);
        check(&[&[1], &[2], &[0]], Some(&[0, 1, 2]));
        check(&[&[1], &[2], &[3], &[1]], Some(&[1, 2, 3]));
    }

    #[test]
    fn a_long_chain_needs_no_stack() {
        let mut edges: Vec<Vec<usize>> = (1..100_000).map(|next| vec![next]).collect();
        edges.push(vec![]);
        assert_eq!(find_cycle(&edges), None);
        edges[99_999].push(0);
        assert_eq!(find_cycle(&edges).map(|cycle| cycle.len()), Some(100_000));
    }
}
