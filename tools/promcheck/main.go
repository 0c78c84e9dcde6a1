// Command promcheck reads the expressions of a Prometheus rule file, as
// Prometheus does, and of a Grafana dashboard, and prints the names of the metrics
// in them, one a line. What does not parse fails.
//
//	promcheck rules.yaml dashboard.json
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "promcheck:", err)
		os.Exit(1)
	}
}

func run(paths []string) error {
	p := parser.NewParser(parser.Options{})
	names := map[string]bool{}
	for _, path := range paths {
		read := dashboard
		if strings.HasSuffix(path, ".yaml") {
			read = rules
		}
		expressions, err := read(path, p)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, text := range expressions {
			expr, err := p.ParseExpr(text)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", path, text, err)
			}
			parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
				if s, ok := n.(*parser.VectorSelector); ok {
					names[s.Name] = true
				}
				return nil
			})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		fmt.Println(name)
	}
	return nil
}

// rules are the expressions of a rule file.
func rules(path string, p parser.Parser) ([]string, error) {
	groups, errs := rulefmt.ParseFile(path, false, model.UTF8Validation, p, slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	var out []string
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			out = append(out, r.Expr)
		}
	}
	return out, nil
}

// A panel is what is of interest of one.
type panel struct {
	Title   string
	Targets []struct{ Expr string }
	Panels  []panel
}

// dashboard are the expressions of a dashboard, with its variables filled in.
func dashboard(path string, _ parser.Parser) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var d struct {
		Panels     []panel
		Templating struct {
			List []struct{ Type, Definition string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, err
	}
	fill := strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$instance", ".*")
	var out []string
	var add func(panels []panel) error
	add = func(panels []panel) error {
		for _, p := range panels {
			for _, t := range p.Targets {
				if t.Expr == "" {
					return fmt.Errorf("panel %q has a target without an expression", p.Title)
				}
				out = append(out, fill.Replace(t.Expr))
			}
			if err := add(p.Panels); err != nil {
				return err
			}
		}
		return nil
	}
	for _, v := range d.Templating.List {
		if selector, ok := strings.CutPrefix(v.Definition, "label_values("); ok && v.Type == "query" {
			at := strings.LastIndex(selector, ",")
			out = append(out, fill.Replace(selector[:max(at, 0)]))
		}
	}
	return out, add(d.Panels)
}
