package deploy

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// A release is a module whose files hold schemas, and the hash that Go has for it.
type release struct{ module, sum string }

// kubernetes are the releases that must take the manifests: the oldest one that
// starts sidecars, and a recent one.
var kubernetes = map[string]release{
	"1.29": {"k8s.io/kubernetes@v1.29.15", "h1:hLcyf3XmxtfkubCEmmPX5QVD7lDclXjvEUrJeP283LM="},
	"1.35": {"k8s.io/kubernetes@v1.35.3", "h1:J3dk2wybKFHwoH4eydDUGHJo4HAD+9CZbSlvk/YQuao="},
}

var certManager = release{"github.com/cert-manager/cert-manager@v1.19.1", "h1:Txh8L/nLWTDcb7ZnXuXbTe15BxQnLbLirXmbNk0fGgY="}

// fetch is the directory with the files of the release, in Go's module cache.
func (r release) fetch(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", r.module)
	cmd.Dir = t.TempDir() // outside of any module
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	out, err := cmd.Output()
	var m struct{ Dir, Sum, Error string }
	if bad := json.Unmarshal(out, &m); bad != nil || m.Error != "" {
		t.Fatalf("go mod download %s: %v, %v, %s", r.module, err, bad, m.Error)
	}
	if m.Sum != r.sum {
		t.Fatalf("%s has the sum %s, want %s", r.module, m.Sum, r.sum)
	}
	return m.Dir
}

// schemas checks objects against the schemas of their kinds.
type schemas struct {
	compiler *jsonschema.Compiler
	at       map[string]string // apiVersion and kind: where its schema is
}

// newSchemas are those of a release of Kubernetes, and of what extends it here.
func newSchemas(t *testing.T, r release) *schemas {
	t.Helper()
	s := &schemas{compiler: jsonschema.NewCompiler(), at: map[string]string{}}
	files, err := filepath.Glob(filepath.Join(r.fetch(t), "api/openapi-spec/v3/*_openapi.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no schemas: %v", r.module, err)
	}
	for _, file := range files {
		if base := filepath.Base(file); base == "api__v1_openapi.json" || wanted(base) {
			s.addOpenAPI(t, file)
		}
	}
	for _, name := range []string{"certificates", "issuers"} {
		s.addCRD(t, filepath.Join(certManager.fetch(t), "deploy/crds/cert-manager.io_"+name+".yaml"))
	}
	return s
}

// wanted are the groups that the manifests use.
func wanted(file string) bool {
	for _, group := range []string{"apps", "batch", "policy", "networking.k8s.io", "rbac.authorization.k8s.io"} {
		if file == "apis__"+group+"__v1_openapi.json" {
			return true
		}
	}
	return false
}

func (s *schemas) addOpenAPI(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	strict(doc)
	url := "file:///" + filepath.Base(file)
	if err := s.compiler.AddResource(url, doc); err != nil {
		t.Fatal(err)
	}
	all, _ := dig(doc, "components", "schemas").(map[string]any)
	for name, schema := range all {
		kinds, _ := dig(schema, "x-kubernetes-group-version-kind").([]any)
		if len(kinds) != 1 { // what all groups have, such as DeleteOptions
			continue
		}
		s.at[kindOf(dig(kinds[0], "group"), dig(kinds[0], "version"), dig(kinds[0], "kind"))] = url + "#/components/schemas/" + name
	}
}

func (s *schemas) addCRD(t *testing.T, file string) {
	t.Helper()
	for _, crd := range decode(t, mustRead(t, file)) {
		group, kind := dig(crd, "spec", "group"), dig(crd, "spec", "names", "kind")
		versions, _ := dig(crd, "spec", "versions").([]any)
		for _, v := range versions {
			doc := dig(v, "schema", "openAPIV3Schema")
			strict(doc)
			name := kindOf(group, dig(v, "name"), kind)
			url := "file:///" + strings.ReplaceAll(name, " ", "/")
			if err := s.compiler.AddResource(url, doc); err != nil {
				t.Fatal(err)
			}
			s.at[name] = url
		}
	}
}

func kindOf(group, version, kind any) string {
	if group == nil || group == "" {
		return fmt.Sprint(version, " ", kind)
	}
	return fmt.Sprint(group, "/", version, " ", kind)
}

// strict closes every object of a schema whose members are known.
func strict(node any) {
	switch n := node.(type) {
	case []any:
		for _, each := range n {
			strict(each)
		}
	case map[string]any:
		for key, each := range n {
			if key != "default" && key != "enum" && key != "example" {
				strict(each)
			}
		}
		_, has := n["properties"].(map[string]any)
		_, open := n["additionalProperties"]
		if has && !open && n["type"] == "object" && n["x-kubernetes-preserve-unknown-fields"] != true {
			n["additionalProperties"] = false
		}
	}
}

// check says what is wrong with an object.
func (s *schemas) check(object map[string]any) error {
	kind := fmt.Sprint(object["apiVersion"], " ", object["kind"])
	at, known := s.at[kind]
	if !known {
		return fmt.Errorf("there is no %s", kind)
	}
	schema, err := s.compiler.Compile(at)
	if err != nil {
		return err
	}
	err = schema.Validate(object)
	var bad *jsonschema.ValidationError
	if errors.As(err, &bad) {
		return fmt.Errorf("%s: %w", kind, bad)
	}
	return err
}
