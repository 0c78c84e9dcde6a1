// Package telemetry holds what the server tells about itself while it runs:
// metrics that are scraped from /metrics or pushed over OTLP, and traces that are
// pushed over OTLP, down to what is asked of the nodes that images stand on.
//
// It guarantees that nothing is pushed unless the environment says where to, that
// no metric has a label whose values clients can make up, and that what is not
// traced costs nothing: nodes are not wrapped at all, and with tracing on, what is
// not sampled costs a look at the context. It does not guarantee that what is
// pushed arrives: spans are dropped when the collector does not keep up.
package telemetry
