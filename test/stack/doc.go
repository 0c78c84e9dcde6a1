// Package stack tests graphs: filters on filters on protocol nodes, in random
// order, against a model of what the top of the graph contains. Every node of
// every graph verifies what it is told ([storage.NodeOptions.Check]).
package stack
