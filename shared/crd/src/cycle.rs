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

/// The strongly connected component of each node: nodes that reach each other have the same number, and an edge
/// between different ones leads from the higher to the lower number.
///
/// Tarjan's algorithm without recursion. Handling nodes by rising number handles what a node points to before the
/// node itself.
#[must_use]
pub fn strongly_connected(edges: &[Vec<usize>]) -> Vec<usize> {
    const NONE: usize = usize::MAX;
    let mut component = vec![NONE; edges.len()];
    let mut visited = vec![NONE; edges.len()];
    let mut lowest = vec![NONE; edges.len()];
    let mut waiting = Vec::new();
    let mut path: Vec<(usize, usize)> = Vec::new();
    let (mut visits, mut components) = (0, 0);
    for start in 0..edges.len() {
        if visited[start] != NONE {
            continue;
        }
        path.push((start, 0));
        while let Some(&mut (node, ref mut next)) = path.last_mut() {
            if *next == 0 {
                visited[node] = visits;
                lowest[node] = visits;
                visits += 1;
                waiting.push(node);
            }
            let target = edges[node].get(*next).copied();
            *next += 1;
            match target {
                Some(target) if visited[target] == NONE => path.push((target, 0)),
                Some(target) if component[target] == NONE => lowest[node] = lowest[node].min(visited[target]),
                Some(_) => {}
                None => {
                    path.pop();
                    if let Some(&(parent, _)) = path.last() {
                        lowest[parent] = lowest[parent].min(lowest[node]);
                    }
                    if lowest[node] == visited[node] {
                        while let Some(member) = waiting.pop() {
                            component[member] = components;
                            if member == node {
                                break;
                            }
                        }
                        components += 1;
                    }
                }
            }
        }
    }
    component
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
    fn nodes_that_reach_each_other_share_a_number() {
        let graph = |edges: &[&[usize]]| {
            let edges: Vec<Vec<usize>> = edges.iter().map(|targets| targets.to_vec()).collect();
            strongly_connected(&edges)
        };
        assert!(graph(&[]).is_empty());
        assert_eq!(graph(&[&[1], &[2], &[]]), [2, 1, 0]);
        assert_eq!(graph(&[&[1], &[0], &[0]]), [0, 0, 1]);
        assert_eq!(graph(&[&[0], &[2, 0], &[3], &[1]]), [0, 1, 1, 1]);
        // Two cycles joined by one edge.
        assert_eq!(graph(&[&[1], &[0, 2], &[3], &[2]]), [1, 1, 0, 0]);
    }

    #[test]
    fn a_long_chain_needs_no_stack() {
        let mut edges: Vec<Vec<usize>> = (1..100_000).map(|next| vec![next]).collect();
        edges.push(vec![]);
        assert_eq!(find_cycle(&edges), None);
        assert_eq!(strongly_connected(&edges)[0], 99_999);
        edges[99_999].push(0);
        assert_eq!(find_cycle(&edges).map(|cycle| cycle.len()), Some(100_000));
    }
}
