import sys, traceback, importlib.abc
class F(importlib.abc.MetaPathFinder):
    def find_spec(self,name,path,target=None):
        if name in ('torchvision','torch._dynamo','triton','sympy','matplotlib','scipy','cuda','transformers'):
            print('>>',name,[f"{f.filename.split('site-packages/')[-1][-50:]}:{f.lineno}" for f in traceback.extract_stack()[:-1] if 'importlib' not in f.filename][-6:],flush=True)
sys.meta_path.insert(0,F())
import longseq.genomics.embed
