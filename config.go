package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/extentd/extentd/service"
)

// Config is what a server needs to know. Its keys are the same as flags, in the
// configuration file, and as EXTENTD_* in the environment.
type Config struct {
	Dir           string        `koanf:"dir"`
	Listen        string        `koanf:"listen"`
	AdminListen   string        `koanf:"admin-listen"`
	Image         []string      `koanf:"image"`
	BackingDir    []string      `koanf:"backing-dir"`
	FollowBacking string        `koanf:"follow-backing"`
	ReadOnly      bool          `koanf:"read-only"`
	State         string        `koanf:"state"`
	Idle          time.Duration `koanf:"idle"`
	MaxOpen       int           `koanf:"max-open"`
	Insecure      bool          `koanf:"insecure"`
	Debug         bool          `koanf:"debug"`
	LogLevel      string        `koanf:"log-level"`

	NBD NBDConfig    `koanf:",squash"`
	TLS ListenConfig `koanf:",squash"`

	Auth AuthConfig `koanf:",squash"`

	Load LoadConfig `koanf:",squash"`

	Dialects DialectConfig `koanf:",squash"`

	Telemetry TelemetryConfig `koanf:",squash"`

	// Images are those of the configuration file, whose key is images. They are
	// neither flag nor environment.
	Images []imageConfig `koanf:"-"`
}

const (
	defaultDir    = "images"
	defaultListen = "127.0.0.1:7080"
	stateDir      = ".extentd"
	envPrefix     = "EXTENTD_"
)

func configFlags(f *pflag.FlagSet) {
	f.String("listen", defaultListen, "listen on `ADDR`, HOST:PORT or unix:PATH; port 0 picks one")
	f.String("admin-listen", "", "answer healthz, readyz and metrics, and nothing else, on `ADDR` too")
	f.StringArray("nbd", nil, "speak NBD on `ADDR`, HOST:PORT or unix:PATH; may be repeated")
	f.String("nbd-tls-cert", "", "speak NBD under TLS alone, with the certificate in the PEM `FILE`")
	f.String("nbd-tls-key", "", "its key, in the PEM `FILE`")
	f.String("nbd-tls-client-ca", "", "serve NBD clients alone that have a certificate of an authority in the PEM `FILE`")
	f.StringArray("image", nil, "serve one more image: `NAME=PATH`[,format=F][,data-file=PATH][,backing=NAME][,readonly]; may be repeated")
	f.StringArray("backing-dir", nil, "images may name backing and data files in `DIR`; may be repeated")
	f.String("follow-backing", "root", "`POLICY` for names stored in images: follow them inside the served directories (root), or not at all (deny)")
	f.Bool("read-only", false, "refuse every change")
	f.String("state", "", "keep what must survive a restart, such as allocations, in `DIR`, which is made when there is something to keep (default: "+stateDir+" in the served directory)")
	f.Duration("idle", 30*time.Second, "close an image `DURATION` after its last use")
	f.Int("max-open", 256, "open at most `N` images at a time")
	f.Bool("insecure", false, "let --listen and --nbd name addresses that others can reach, without authentication")
	f.Bool("debug", false, "check every answer of drivers and files against the rules of the storage package")
	f.String("log-level", "info", "log from `LEVEL` on: debug, info, warn or error")
	listenFlags(f)
	authFlags(f)
	loadFlags(f)
	telemetryFlags(f)
	dialectFlags(f)
	f.String("config", "", "read settings from a YAML `FILE`; its keys are the names of these flags, and dir")
}

// loadConfig merges, the last wins: defaults, the configuration file, the
// environment, flags and the argument.
func loadConfig(flags *pflag.FlagSet, args []string) (Config, error) {
	k := koanf.New(".")
	var c Config
	path, err := configPath(flags)
	if err != nil {
		return Config{}, err
	}
	if path != "" {
		if c.Images, err = loadFile(k, flags, path); err != nil {
			return Config{}, fmt.Errorf("config file %s: %w", path, err)
		}
	}
	if err := k.Load(env.Provider("", env.Opt{Prefix: envPrefix, TransformFunc: fromEnv(flags)}), nil); err != nil {
		return Config{}, fmt.Errorf("environment: %w", err)
	}
	if err := k.Load(posflag.Provider(flags, ".", k), nil); err != nil {
		return Config{}, fmt.Errorf("flags: %w", err)
	}
	err = k.UnmarshalWithConf("", &c, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		DecodeHook:       mapstructure.StringToTimeDurationHookFunc(), // and strings are not split at commas
		WeaklyTypedInput: true,
		Result:           &c,
	}})
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	if len(args) > 0 {
		c.Dir = args[0]
	}
	return c, c.complete(path != "")
}

// loadFile reads the configuration file: settings into k, and images.
func loadFile(k *koanf.Koanf, flags *pflag.FlagSet, path string) ([]imageConfig, error) {
	text, err := file.Provider(path).ReadBytes()
	if err != nil {
		return nil, err
	}
	all, err := yaml.Parser().Unmarshal(text)
	if err != nil {
		return nil, err
	}
	images, has := all["images"]
	delete(all, "images") // koanf knows no lists of maps
	if err := k.Load(settings(all), nil); err != nil {
		return nil, err
	}
	for _, key := range k.Keys() {
		if !isSetting(flags, key) {
			return nil, fmt.Errorf("unknown key %q", key)
		}
	}
	if !has {
		return nil, nil
	}
	return decodeImages(path, images)
}

// settings are a koanf.Provider of what has been parsed already.
type settings map[string]any

func (settings) ReadBytes() ([]byte, error) { return nil, errors.ErrUnsupported }

func (s settings) Read() (map[string]any, error) { return s, nil }

func configPath(flags *pflag.FlagSet) (string, error) {
	path, err := flags.GetString("config")
	if err == nil && path == "" {
		path = os.Getenv(envPrefix + "CONFIG")
	}
	return path, err
}

// isSetting reports whether key may stand in a configuration file.
func isSetting(flags *pflag.FlagSet, key string) bool {
	return key == "dir" || key != "config" && key != "help" && flags.Lookup(key) != nil
}

// fromEnv turns EXTENTD_BACKING_DIR into backing-dir. Names that are no setting
// are ignored: Kubernetes sets some, such as EXTENTD_SERVICE_HOST, for a
// service that is called extentd.
func fromEnv(flags *pflag.FlagSet) func(key, value string) (string, any) {
	return func(key, value string) (string, any) {
		key = strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(key, envPrefix)), "_", "-")
		if !isSetting(flags, key) {
			return "", nil
		}
		if f := flags.Lookup(key); f != nil && f.Value.Type() == "stringArray" {
			return key, slices.DeleteFunc(strings.Split(value, ";"), func(s string) bool { return s == "" })
		}
		return key, value
	}
}

// complete refuses what is unsafe and puts in the default directory.
func (c *Config) complete(hasFile bool) error {
	if c.Idle <= 0 {
		return fmt.Errorf("idle is %v, must be positive", c.Idle)
	}
	if c.MaxOpen < 1 {
		return fmt.Errorf("max-open is %d, must be at least 1", c.MaxOpen)
	}
	if err := c.Load.check(); err != nil {
		return err
	}
	if err := c.Auth.check(); err != nil {
		return err
	}
	if _, err := c.Dialects.dialects(); err != nil {
		return err
	}
	if err := c.checkListen(); err != nil {
		return err
	}
	if c.Dir == "" && len(c.Image) == 0 && !hasFile {
		c.Dir = defaultDir
		if err := os.MkdirAll(c.Dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// isLoopback reports whether only this machine reaches an address.
func isLoopback(addr string) (bool, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false, fmt.Errorf("listen: %w", err)
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback(), nil
}

// service is the part of the configuration that says what is served.
func (c *Config) service(w wiring) (service.Options, error) {
	w.check = c.Debug
	follow, err := service.ParseFollow(c.FollowBacking)
	if err != nil {
		return service.Options{}, err
	}
	opt := service.Options{
		Dir:           c.Dir,
		BackingDirs:   c.BackingDir,
		FollowBacking: follow,
		Formats:       formats(),
		Blocksize:     blocksizeFilter{}.filter(wiring{}).Open,
		Idle:          c.Idle,
		MaxOpen:       c.MaxOpen,
		CacheSize:     c.Load.quarter(),
		ReadOnly:      c.ReadOnly,
		Check:         c.Debug,
	}
	for _, text := range c.Image {
		spec, err := service.ParseImageSpec(text)
		if err != nil {
			return service.Options{}, err
		}
		opt.Images = append(opt.Images, spec)
	}
	for i := range c.Images {
		spec, err := c.Images[i].spec(w)
		if err != nil {
			return service.Options{}, err
		}
		opt.Images = append(opt.Images, spec)
	}
	return opt, nil
}

// state is the directory for what must survive a restart, "" for none. Nothing is
// made there before it is needed. A server that changes nothing puts nothing into
// the served directory.
func (c *Config) state() string {
	if c.State == "" && c.Dir != "" && !c.ReadOnly {
		return filepath.Join(c.Dir, stateDir)
	}
	return c.State
}
