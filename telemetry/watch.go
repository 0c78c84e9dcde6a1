package telemetry

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// A Metric is one value of a snapshot that somebody else counts.
type Metric[S any] struct {
	// Name is dotted, without the unit: "extentd.images.open". Several may have
	// one name, if their labels differ, and all else is the same.
	Name string
	// Unit as in UCUM: "By", "s", "{image}"; what is in braces is no part of the
	// name that Prometheus sees.
	Unit string
	// Help is one sentence.
	Help string
	// Gauge: it goes up and down. Otherwise it only adds up.
	Gauge bool
	// Labels are constant: there are as many as stand in the program. Default:
	// none.
	Labels map[string]string
	// Of is the value in a snapshot.
	Of func(s *S) float64
}

// Watch exports metrics whose values come from read: once for each time that they
// are collected, for all of them. It may be called until Shutdown.
func Watch[S any](t *Telemetry, read func() S, metrics ...Metric[S]) error {
	meter := t.Meter(scope)
	instruments := map[string]metric.Float64Observable{}
	var all []metric.Observable
	for i := range metrics {
		m := &metrics[i]
		if instruments[m.Name] != nil {
			continue
		}
		o, err := m.instrument(meter)
		if err != nil {
			return fmt.Errorf("telemetry: %s: %w", m.Name, err)
		}
		instruments[m.Name] = o
		all = append(all, o)
	}
	labels := make([][]metric.ObserveOption, len(metrics))
	for i := range metrics {
		var set []attribute.KeyValue
		for key, value := range metrics[i].Labels {
			set = append(set, attribute.String(key, value))
		}
		labels[i] = []metric.ObserveOption{metric.WithAttributeSet(attribute.NewSet(set...))}
	}
	_, err := meter.RegisterCallback(func(_ context.Context, to metric.Observer) error {
		s := read()
		for i := range metrics {
			to.ObserveFloat64(instruments[metrics[i].Name], metrics[i].Of(&s), labels[i]...)
		}
		return nil
	}, all...)
	if err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	return nil
}

func (m *Metric[S]) instrument(meter metric.Meter) (metric.Float64Observable, error) {
	if m.Gauge {
		return meter.Float64ObservableGauge(m.Name, metric.WithUnit(m.Unit), metric.WithDescription(m.Help))
	}
	return meter.Float64ObservableCounter(m.Name, metric.WithUnit(m.Unit), metric.WithDescription(m.Help))
}
