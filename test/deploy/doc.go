// Package deploy tests the manifests in deploy/: that they build, that Kubernetes
// takes them, under its restricted Pod Security Standard too, and that they fit the
// binary. It is a module of its own, so that what it needs is no business of
// extentd's.
package deploy
