package deploy

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// manifests is where what is tested here lies.
const manifests = "../../deploy"

// An object is a resource of Kubernetes.
type object = map[string]any

// kustomizations are the directories below deploy with a kustomization of a kind,
// Kustomization or Component.
func kustomizations(t *testing.T, kind string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(manifests, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "kustomization.yaml" {
			for _, k := range decode(t, mustRead(t, path)) {
				if k["kind"] == kind {
					all = append(all, filepath.Dir(path))
				}
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatalf("there is no %s", kind)
	}
	return all
}

// build is what kustomize makes of a directory.
func build(t *testing.T, dir string) []object {
	t.Helper()
	text, err := kustomize(dir)
	if err != nil {
		t.Fatalf("kustomize build %s: %v", dir, err)
	}
	return decode(t, text)
}

func kustomize(dir string) ([]byte, error) {
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, err
	}
	return resources.AsYaml()
}

// decode takes YAML documents apart.
func decode(t *testing.T, text []byte) []object {
	t.Helper()
	var all []object
	for doc := range strings.SplitSeq("\n"+string(text), "\n---\n") {
		asJSON, err := yaml.YAMLToJSONStrict([]byte(doc))
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(asJSON)))
		if err != nil {
			t.Fatal(err)
		}
		switch o := value.(type) {
		case nil:
		case object:
			all = append(all, o)
		default:
			t.Fatalf("a document is %T", value)
		}
	}
	return all
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// dig goes down by keys, to nil where there is nothing.
func dig(from any, keys ...string) any {
	for _, key := range keys {
		o, _ := from.(object)
		from = o[key]
	}
	return from
}

// list is the list at keys, nil for none.
func list(from any, keys ...string) []any {
	l, _ := dig(from, keys...).([]any)
	return l
}

// text is the string at keys, "" for none.
func text(from any, keys ...string) string {
	s, _ := dig(from, keys...).(string)
	return s
}

// Every component is in an example, so that it is tested.
func TestComponentsAreUsed(t *testing.T) {
	used := map[string]bool{}
	for _, kind := range []string{"Kustomization", "Component"} {
		for _, dir := range kustomizations(t, kind) {
			for _, k := range decode(t, mustRead(t, filepath.Join(dir, "kustomization.yaml"))) {
				for _, c := range list(k, "components") {
					used[filepath.Join(dir, c.(string))] = true
				}
			}
		}
	}
	for _, dir := range kustomizations(t, "Component") {
		if !used[dir] {
			t.Errorf("%s is in no example", dir)
		}
	}
}

// Names in the same namespace are taken once, and nothing but the namespace is
// named for one.
func TestNamespaces(t *testing.T) {
	everywhere := []string{"Namespace", "ClusterRoleBinding"}
	for _, dir := range kustomizations(t, "Kustomization") {
		if !strings.Contains(dir, "examples") {
			continue
		}
		t.Run(filepath.Base(dir), func(t *testing.T) {
			for _, o := range build(t, dir) {
				space := text(o, "metadata", "namespace")
				if global := slices.Contains(everywhere, text(o, "kind")); global != (space == "") {
					t.Errorf("%s %s is in the namespace %q", text(o, "kind"), text(o, "metadata", "name"), space)
				}
			}
		})
	}
}
