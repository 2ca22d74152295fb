//! Runs health checks where the component lives and streams the results.
