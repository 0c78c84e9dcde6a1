package main

import (
	"fmt"
	"slices"

	"github.com/spf13/pflag"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/api/imageio"
	"github.com/extentd/extentd/api/kubevirt"
)

// DialectConfig says which protocols of other servers are spoken besides.
type DialectConfig struct {
	Names []string `koanf:"dialect"`
}

func dialectFlags(f *pflag.FlagSet) {
	f.StringArray("dialect", nil, "serve the paths of another server, too: those of `NAME`, imageio or kubevirt; may be repeated")
}

// dialects are those that are asked for, each once.
func (c *DialectConfig) dialects() ([]*api.Dialect, error) {
	all := []*api.Dialect{imageio.New(), kubevirt.New()}
	var chosen []*api.Dialect
	for _, name := range c.Names {
		i := slices.IndexFunc(all, func(d *api.Dialect) bool { return d.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("dialect is %q, must be imageio or kubevirt", name)
		}
		if !slices.Contains(chosen, all[i]) {
			chosen = append(chosen, all[i])
		}
	}
	return chosen, nil
}
